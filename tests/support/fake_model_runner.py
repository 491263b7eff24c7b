"""A fake model runner that stores the KV cache in dictionaries.

It checks every token, block, slot and page of the scheduler's plans.
All tokens of a test are distinct, so that a row of the KV cache identifies its sequence and position.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any

from motet.core.messages import AddRequest, LoraEntry, PreparedAdapter
from motet.core.sampling_params import SamplingParams
from motet.engine.schedule.batch import Step
from motet.engine.schedule.plan import ClearSlot, InstallAdapter, SequencePlan
from motet.engine.schedule.scheduler import Scheduler
from motet.engine.schedule.sequence import Sequence


def make_adapter(name: str, entries: list[tuple[int, str, int]]) -> PreparedAdapter:
    """A prepared adapter with these (layer, module, rank) entries."""
    parts = tuple(LoraEntry(layer, module, rank, 1.0) for layer, module, rank in entries)
    return PreparedAdapter(id=name, fingerprint=name, files=(name,), entries=parts, bytes=1)


class FakeModelRunner:
    """Drives a scheduler as EngineCore does, and checks each step against the tokens of the sequences.

    With `overlap`, the next step is scheduled before the tokens of the last one are recorded.
    """

    def __init__(self, scheduler: Scheduler, overlap: bool = False) -> None:
        self.scheduler = scheduler
        self._overlap = overlap
        self._launched: deque[tuple[Step, list[int]]] = deque()
        self.now = 0.0
        self.texts: dict[str, list[int]] = {}  # prompt and output of each sequence that has not ended
        self.limits: dict[str, int] = {}
        self.finished: set[str] = set()
        self.installing: dict[str, InstallAdapter] = {}
        self.busy_steps = 0
        self._ids, self._tokens = count(), count()
        self._cache: dict[tuple[int, int], tuple[int, str | None]] = {}  # (block, offset) -> token, adapter
        self._slots: dict[int, InstallAdapter] = {}
        self._page_owner: dict[tuple[str, int], str] = {}
        self._sampled: list[int] = []  # by row of the last step

    def submit(self, prompt: int, output: int, adapter: str | None, n: int = 1, **others: Any) -> str:
        """Queue `n` choices of a prompt with `prompt` new tokens; returns the first choice's id.

        `others` are fields of AddRequest; without a `group`, the request has an owner of its own.
        """
        ids = [f"s{next(self._ids)}" for _ in range(n)]
        tokens = tuple(next(self._tokens) for _ in range(prompt))
        for id in ids:
            self.texts[id] = list(tokens)
            self.limits[id] = prompt + output
            prefix_of = ids[0] if id != ids[0] else None
            params = SamplingParams(max_tokens=output)
            request = AddRequest(id, tokens, params, adapter, prefix_of=prefix_of, **{"group": ids[0]} | others)
            self.scheduler.add(request, b"", self.now)
        return ids[0]

    def abort(self, id: str) -> None:
        """Abort a sequence, as when its client disconnects."""
        del self.texts[id]
        assert self.scheduler.finish(id) is not None

    def report(self, adapter: str, works: bool) -> None:
        """Report that every rank has installed the adapter."""
        command = self.installing.pop(adapter)
        if works:
            self.scheduler.slots.mark_ready(adapter)
            return
        self._forget(self._slots.pop(command.slot))
        self.scheduler.slots.remove(adapter)
        for sequence in self.scheduler.waiting_for_adapter(adapter):
            self.abort(sequence.id)

    def step(self, seconds: float) -> bool:
        """Schedule and run one step; False if nothing could run."""
        self.now += seconds
        before = list(self.scheduler.running)
        step = self.scheduler.schedule(self.now)
        remaining = [s.precedence for s in before if s in self.scheduler.running]
        preempted = [s for s in before if s in self.scheduler.waiting]
        # A better priority may preempt all sequences of an adapter, so that the order holds only within one priority.
        for sequence in preempted:
            worse = [p for p in remaining if p > sequence.precedence and p.priority == sequence.request.priority]
            assert not worse or any(s.request.priority < sequence.request.priority for s in self.scheduler.sequences())
        for command in self.scheduler.take_commands():
            if isinstance(command, ClearSlot):
                self._forget(self._slots.pop(command.slot))
            else:
                self._install(command)
        if step is not None:
            self._run(step)
            self.busy_steps += 1
        if self._launched and (step is None or len(self._launched) > self._overlap):
            self._finish(*self._launched.popleft())
        self.scheduler.check_integrity()
        return step is not None

    def check_idle(self) -> None:
        """Assert that nothing runs, and that all blocks and slots are free."""
        scheduler = self.scheduler
        while self._launched:
            self._finish(*self._launched.popleft())
        assert not self.texts
        assert not scheduler.sequences()
        assert scheduler.blocks.free == scheduler.blocks.total
        assert scheduler.slots.counts()[1] == 0
        scheduler.check_integrity()

    def _install(self, command: InstallAdapter) -> None:
        in_use = {s.request.adapter for s in self.scheduler.running}
        assert command.slot not in self._slots, "a slot is filled before it is cleared"
        assert command.fingerprint not in in_use
        for placement in command.placements:
            for page in placement.pages:
                assert (placement.module, page) not in self._page_owner, "a page in use is written"
                self._page_owner[placement.module, page] = command.fingerprint
        self._slots[command.slot] = command
        self.installing[command.fingerprint] = command

    def _forget(self, command: InstallAdapter) -> None:
        for placement in command.placements:
            for page in placement.pages:
                assert self._page_owner.pop((placement.module, page)) == command.fingerprint

    def _run(self, step: Step) -> None:
        plan, limits = step.plan, self.scheduler.config
        sizes = [len(s.tokens) for s in plan.sequences]
        assert plan.sequences
        assert min(sizes) > 0
        assert sum(sizes) <= limits.max_batch_tokens, "the token budget is exceeded"
        assert len(plan.sequences) <= limits.max_sequences, "too many sequences"
        assert sorted(sizes, key=lambda n: n > 1) == sizes, "single tokens come first"
        ids = [sequence.id for sequence in step.sequences]
        assert len(set(ids)) == len(ids), "a sequence has two shares"
        for share, sequence in zip(plan.sequences, step.sequences, strict=True):
            self._feed(share, sequence)
        self._check_lora(step, ids)
        sampling = [id for id, share in zip(ids, plan.sequences, strict=True) if share.sample]
        assert [row.id for row in step.rows] == sampling
        self._sampled = [self._new_token(id) for id in sampling]
        self._launched.append((step, self._sampled))

    def _finish(self, step: Step, tokens: list[int]) -> None:
        for sequence in self.scheduler.record_samples(step, tokens):
            if sequence is not None:
                self._check_progress(sequence)

    def _feed(self, share: SequencePlan, sequence: Sequence) -> None:
        """Write the keys of a plan's tokens, and check the context in its block table."""
        tokens = [self._sampled[-1 - t] if t < 0 else t for t in share.tokens]
        text, end, adapter = self.texts[sequence.id], share.start + len(tokens), sequence.request.adapter
        assert tokens == text[share.start : end], "the tokens fed are not the sequence's"
        assert share.sample == (end == len(text)), "a token is sampled exactly after the newest one"
        size = self.scheduler.blocks.block_size
        assert len(share.block_table) == -(-end // size), "the table covers exactly the context"
        for position, token in enumerate(tokens, share.start):
            block = share.block_table[position // size]
            holders = [s.id for s in self.scheduler.running if block in s.blocks]
            assert holders == [sequence.id], "a block that other sequences read is written"
            self._cache[block, position % size] = token, adapter
        seen = [self._cache.get((share.block_table[p // size], p % size)) for p in range(end)]
        assert seen == [(token, adapter) for token in text[:end]], "the context is not the sequence's"

    def _check_lora(self, step: Step, ids: list[str]) -> None:
        by_row: dict[int, int] = {}
        for chunk in step.plan.lora:
            for row in range(chunk.start, chunk.start + chunk.length):
                assert row not in by_row, "a row is in two chunks"
                by_row[row] = chunk.slot
        adapters = {s.id: s.request.adapter for s in self.scheduler.running}
        row = 0
        for id, share in zip(ids, step.plan.sequences, strict=True):
            for _ in share.tokens:
                self._check_row(adapters[id], by_row.get(row))
                row += 1

    def _check_row(self, adapter: str | None, slot: int | None) -> None:
        assert (adapter is None) == (slot is None), "base rows are in no chunk, adapter rows in one"
        if adapter is None or slot is None:
            return
        install = self._slots[slot]
        assert install.fingerprint == adapter
        assert adapter not in self.installing, "a slot is used before it is installed"
        for placement in install.placements:
            assert {self._page_owner[placement.module, page] for page in placement.pages} == {adapter}

    def _check_progress(self, sequence: Sequence) -> None:
        id = sequence.id
        text = [*sequence.request.prompt, *sequence.output]
        assert text == self.texts[id][: len(text)], "the recorded tokens are not the sampled ones"
        assert len(self.texts[id]) == sequence.num_tokens <= self.limits[id], "more tokens are sampled than requested"
        if len(text) == self.limits[id]:
            self.finished.add(id)
            self.abort(id)

    def _new_token(self, id: str) -> int:
        token = next(self._tokens)
        self.texts[id].append(token)
        return token
