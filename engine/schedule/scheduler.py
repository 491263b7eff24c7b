"""Decides, step by step, which sequences run. Knows no tensors and no clock but the `now` it is handed.

Continuous batching (Yu et al., "Orca", OSDI 2022) over paged blocks (Kwon et al., "PagedAttention", SOSP 2023):
each step takes the running sequences' next tokens, then prefill chunks, then whoever is waiting and fits.
When blocks run out, the sequence that goes last gives its blocks back and is computed again later. Priority decides
which goes first, then the owner's turn, then arrival; the choices of one request share the blocks of their prompt.

Owners (API keys) take turns, sequence by sequence, as flows do in start-time fair queueing (Goyal et al., SIGCOMM
1996): whatever one of them queues, another's next sequence starts as soon as one can. Without keys all are one owner.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass, field

from motet.core.messages import AddRequest, PreparedAdapter
from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.block_manager import BlockManager
from motet.engine.schedule.plan import ClearSlot, InstallAdapter
from motet.engine.schedule.sequence import Sequence
from motet.engine.schedule.step import Step, StepBuilder

MAX_ADAPTERS = 16384
"""Adapters remembered by what they hold; only those in slots hold memory on the device."""

PATIENCE = 2.0
"""Seconds that a sequence may be passed over before room is kept for it."""


@dataclass(frozen=True)
class SchedulerConfig:
    """What one step may hold."""

    batch_tokens: int
    sequences: int


@dataclass
class Scheduler:
    """The waiting queue, the running batch, and the rules by which sequences move between them."""

    blocks: BlockManager
    slots: AdapterSlots
    limits: SchedulerConfig
    engine_id: str = ""
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    commands: list[InstallAdapter | ClearSlot] = field(default_factory=list)
    owned: Counter[str] = field(default_factory=Counter)  # sequences that have not ended, by owner
    steps: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self._numbers = 0
        self._turn = 0  # of the sequence that started last
        # (owner, whether behind the usual priority, as batches are) -> the turn of its next sequence, at the earliest
        self._next_turns: dict[tuple[str, bool], int] = {}
        self._by_id: dict[str, Sequence] = {}
        self._adapters: dict[str, PreparedAdapter] = {}
        # Adapters that are let run dry, each for the waiting sequence of this precedence, which needs their room. They
        # stay so until that sequence's adapter has its place, or the sequence is gone.
        self._draining: dict[str, tuple[int, int, int]] = {}
        self._rooms: dict[int, float] = {}  # priority -> blocks to be had, while the batch stays as it is

    def register(self, adapter: PreparedAdapter) -> None:
        """Make an adapter known. Raises AdapterRefused if it can never be placed."""
        self.slots.admit(adapter)
        self._adapters[adapter.fingerprint] = adapter
        if len(self._adapters) > MAX_ADAPTERS:
            used = {s.request.adapter for s in self._by_id.values()}
            spare = (f for f in self._adapters if f not in used and self.slots.get(f) is None)
            if (oldest := next(spare, None)) is not None:
                del self._adapters[oldest]

    def knows(self, fingerprint: str) -> bool:
        """Whether a request may name this adapter."""
        return fingerprint in self._adapters

    def add(self, request: AddRequest, client: bytes, now: float) -> Sequence:
        """Queue a sequence."""
        flow = (request.owner, request.priority > 0)  # callers choose priorities, so not one flow for each
        turn = max(self._turn, self._next_turns.get(flow, 0))
        self._next_turns[flow] = turn + 1
        sequence = Sequence(request, client, self._numbers, now, turn=turn)
        if request.adapter is not None:  # last in line to be forgotten
            self._adapters[request.adapter] = self._adapters.pop(request.adapter)
        self._numbers += 1
        self._by_id[request.id] = sequence
        self.owned[request.owner] += 1
        self._queue(sequence)
        return sequence

    def group(self, group: str) -> list[Sequence]:
        """The sequences of one request that have not ended, by its group or by what their ids have in common."""
        return [s for s in self._by_id.values() if s.request.belongs_to(group)]

    def finish(self, id: str) -> Sequence | None:
        """Forget a sequence, wherever it is, and free what it holds; None if it is not known (any more)."""
        sequence = self._by_id.pop(id, None)
        if sequence is None:
            return None
        owner = sequence.request.owner
        self.owned[owner] -= 1
        if not self.owned[owner]:
            del self.owned[owner]
            self._forget_turns(owner)
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        else:
            self.waiting.remove(sequence)
        return sequence

    def _forget_turns(self, left: str) -> None:
        """Forget the turns of owners without sequences, of which `left` is the latest, once the others have had theirs.

        Forgotten at once, an owner that sends one sequence after the other would always go before one that has several
        waiting. An owner without sequences owes one turn at most, and nothing for sequences that never ran.
        """
        for flow, turn in list(self._next_turns.items()):
            owner, _ = flow
            if owner in self.owned:
                continue
            if turn <= self._turn:
                del self._next_turns[flow]
            elif owner == left:
                self._next_turns[flow] = self._turn + 1

    def runs(self, sequence: Sequence) -> bool:
        """Whether the sequence is in the running batch."""
        return sequence in self.running

    def waiting_for(self, fingerprint: str) -> list[Sequence]:
        """The waiting sequences that name this adapter."""
        return [s for s in self.waiting if s.request.adapter == fingerprint]

    def sequences(self) -> list[Sequence]:
        """Everything that has not ended."""
        return list(self._by_id.values())

    def schedule(self, now: float) -> Step | None:
        """The next step, or None when nothing can run now. `commands` then hold adapter moves to send first."""
        step = StepBuilder(self.limits.batch_tokens)
        # Decode tokens before prefill chunks: who has started keeps its pace whatever arrives.
        for sequence in sorted(self.running, key=lambda s: (s.num_pending_tokens > 1, s.precedence)):
            if step.left and sequence in self.running and not sequence.blocked:
                self._make_room(sequence, step)
        self._admit(now, step)
        for sequence in self.running:
            if sequence.number not in step.shares:
                sequence.sampled_row = None  # its row is overwritten by this step's samples
        if not step.shares:
            return None
        self.steps += 1
        return step.build(self.engine_id, self.steps)

    def sampled(self, step: Step, tokens: list[int]) -> None:
        """Append what each of the step's rows sampled (for sequences that still run)."""
        for row, (sequence, token) in enumerate(zip(step.rows, tokens, strict=True)):
            if self.runs(sequence):
                sequence.output.append(token)
                sequence.sampled_row = row

    def check_integrity(self) -> None:
        """Assert that blocks, slots and queues agree with each other."""
        self.blocks.check_integrity([s.blocks for s in self.running])
        self.slots.check_integrity()
        assert all(not s.blocks and s.slot is None and not s.num_computed_tokens for s in self.waiting)
        assert len(self._by_id) == len(self.waiting) + len(self.running)
        assert +self.owned == Counter(s.request.owner for s in self._by_id.values())
        for fingerprint in self._adapters:
            resident = self.slots.get(fingerprint)
            users = sum(1 for s in self.running if s.request.adapter == fingerprint)
            assert users == (resident.pins if resident else 0), "pins and running sequences differ"

    def _make_room(self, sequence: Sequence, step: StepBuilder) -> None:
        """Take a running sequence's next tokens into the step, with blocks for them, at others' cost if need be."""
        count = min(sequence.num_pending_tokens, step.left)
        while not self.blocks.grow(sequence.blocks, sequence.num_computed_tokens + count):
            victim = max(self.running, key=lambda s: s.precedence)
            self._preempt(victim, step)
            if victim is sequence:
                return
        step.add(sequence, count)

    def _preempt(self, victim: Sequence, step: StepBuilder) -> None:
        self.running.remove(victim)
        self._free(victim)
        self._rooms.clear()
        victim.num_computed_tokens = 0
        victim.sampled_row = None
        self.preemptions += 1
        self._queue(victim)
        step.drop(victim)

    def _queue(self, sequence: Sequence) -> None:
        """Put a sequence into its place in the waiting queue."""
        bisect.insort(self.waiting, sequence, key=lambda s: s.precedence)

    def _admit(self, now: float, step: StepBuilder) -> None:
        """Start waiting sequences, in their order, passing over what cannot run yet."""
        waiting = {s.precedence for s in self.waiting}
        self._draining = {adapter: who for adapter, who in self._draining.items() if who in waiting}
        wanted: set[str] = set()
        self._rooms.clear()
        for sequence in [s for s in self.waiting if not s.blocked]:
            full = len(self.running) >= self.limits.sequences
            if not step.left or (full and not self._worse(sequence)):
                break
            prefix_owner = self._donor(sequence)
            if (
                prefix_owner is not None
                and prefix_owner.num_computed_tokens < self._shareable(sequence) * self.blocks.block_size
            ):
                continue  # its prompt is about to be there
            starving = now - sequence.arrival_time > PATIENCE
            fingerprint = sequence.request.adapter
            if fingerprint is not None:
                if self._draining.get(fingerprint, sequence.precedence) < sequence.precedence:
                    continue
                if not self._adapter_ready(sequence, starving, wanted, step):
                    continue
            shared = self._shareable(sequence) if prefix_owner is not None else 0
            if not self._has_blocks(sequence, shared, step):
                if starving:
                    break
                continue
            if len(self.running) >= self.limits.sequences:
                self._preempt(self._worse(sequence)[-1], step)
            self._start(sequence, prefix_owner, now)
            self._make_room(sequence, step)

    def _has_blocks(self, sequence: Sequence, shared: int, step: StepBuilder) -> bool:
        """Whether the sequence's tokens fit, if need be in the place of sequences with a worse priority."""
        missing = self.blocks.needed(sequence.num_tokens + 1) - shared
        if missing > self._room(sequence):
            return False
        while self.running and missing > self.blocks.free - len(self.running):
            self._preempt(self._worse(sequence)[-1], step)
        return True

    def _room(self, sequence: Sequence) -> float:
        """Blocks to be had for a sequence of this priority; the same for all that wait until the batch changes."""
        priority = sequence.request.priority
        if priority not in self._rooms:
            worse = self._worse(sequence)
            kept = [s for s in self.running if s.request.priority <= priority]
            freed = {b for s in worse for b in s.blocks} - {b for s in kept for b in s.blocks}
            # A block is kept for each running sequence's next token, so that admission does not cause preemption.
            self._rooms[priority] = self.blocks.free + len(freed) - len(kept) if kept else math.inf
        return self._rooms[priority]

    def _worse(self, sequence: Sequence) -> list[Sequence]:
        """The running sequences whose priority is worse, in their order."""
        worse = [s for s in self.running if s.request.priority > sequence.request.priority]
        return sorted(worse, key=lambda s: s.precedence)

    def _shareable(self, sequence: Sequence) -> int:
        """Full blocks of the prompt; its last token is always computed, for the logits."""
        return (len(sequence.request.prompt) - 1) // self.blocks.block_size

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """Whoever has, or is about to have, the blocks of the sequence's prompt: its prefix_of, or else a sibling."""
        prefix_of = sequence.request.prefix_of
        if prefix_of is None or sequence.wants_prompt_logprobs or not self._shareable(sequence):
            return None
        if (first := self._by_id.get(prefix_of)) is not None:
            return first if first.has_same_prompt(sequence) else None
        tokens = self._shareable(sequence) * self.blocks.block_size
        return next(
            (s for s in self.running if s.request.prefix_of == prefix_of and s.num_computed_tokens >= tokens), None
        )

    def _adapter_ready(self, sequence: Sequence, starving: bool, wanted: set[str], step: StepBuilder) -> bool:
        """Whether the adapter can be used now; if not, see to its loading, or have another drained for it."""
        fingerprint = sequence.request.adapter
        assert fingerprint is not None
        resident = self.slots.get(fingerprint)
        wanted.add(fingerprint)
        if resident is None:
            if any(who < sequence.precedence for who in self._draining.values()):
                return False  # what becomes free is kept for an older sequence
            cleared, install = self.slots.place(self._adapters[fingerprint], keep=wanted)
            if install is None and self._unpin_worse(sequence, wanted, step):
                cleared, install = self.slots.place(self._adapters[fingerprint], keep=wanted)
            if install is None:
                if starving:
                    self._drain_for(sequence, wanted)
                return False
            self.commands += [*map(ClearSlot, cleared), install]
        self._draining = {adapter: who for adapter, who in self._draining.items() if who != sequence.precedence}
        return resident is not None and resident.ready

    def _unpin_worse(self, sequence: Sequence, wanted: set[str], step: StepBuilder) -> bool:
        """Preempt an adapter's users, if there is one that only sequences with a worse priority use."""
        worse = self._worse(sequence)
        others = {s.request.adapter for s in self.running if s not in worse and s.request.adapter}
        victim = self.slots.lightest(exclude=wanted | others) if worse else None
        users = [s for s in worse if victim is not None and s.request.adapter == victim]
        for user in users:
            self._preempt(user, step)
        return bool(users)

    def _drain_for(self, sequence: Sequence, wanted: set[str]) -> None:
        """Let another adapter run dry for `sequence`, unless one still does: one after the other until it fits."""
        if any(who == sequence.precedence and self.slots.in_use(name) for name, who in self._draining.items()):
            return
        victim = self.slots.lightest(exclude=wanted | self._draining.keys())
        if victim is not None:
            self._draining[victim] = sequence.precedence

    def _start(self, sequence: Sequence, prefix_owner: Sequence | None, now: float) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._rooms.clear()
        self._turn = max(self._turn, sequence.turn)
        sequence.start_time = now if sequence.start_time is None else sequence.start_time
        if prefix_owner is not None:
            sequence.blocks = self.blocks.share(prefix_owner.blocks[: self._shareable(sequence)])
            sequence.num_computed_tokens = len(sequence.blocks) * self.blocks.block_size
        if sequence.request.adapter is not None:
            sequence.slot = self.slots.pin(sequence.request.adapter)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        if sequence.request.adapter is not None:
            self.slots.unpin(sequence.request.adapter)
        sequence.slot = None
