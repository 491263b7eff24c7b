"""Decides, step by step, which sequences run. Knows no tensors and no clock but the `now` it is handed.

Continuous batching (Yu et al., "Orca", OSDI 2022) over paged blocks (Kwon et al., "PagedAttention", SOSP 2023):
each step takes the running sequences' next tokens, then prefill chunks, then whoever is waiting and fits.
When blocks run out, the sequence that came last gives its blocks back and is computed again later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from motet.core.messages import PreparedAdapter, Submit
from motet.engine.blocks import BlockPool
from motet.engine.plan import ClearSlot, InstallAdapter, LoraChunk, SequencePlan, StepPlan
from motet.engine.sequence import Sequence
from motet.engine.slots import AdapterSlots

MAX_ADAPTERS = 16384
"""Adapters remembered by what they hold; only those in slots hold memory on the device."""

PATIENCE = 2.0
"""Seconds that a sequence may be passed over before room is kept for it."""


@dataclass(frozen=True)
class Limits:
    """What one step may hold."""

    batch_tokens: int
    sequences: int


@dataclass
class Step:
    """A plan together with the sequences behind it: `rows[j]` is the sequence that sample row j belongs to."""

    plan: StepPlan
    rows: list[Sequence]


@dataclass
class Scheduler:
    """The waiting queue, the running batch, and the rules by which sequences move between them."""

    blocks: BlockPool
    slots: AdapterSlots
    limits: Limits
    epoch: str = ""
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    commands: list[InstallAdapter | ClearSlot] = field(default_factory=list)
    steps: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self._numbers = 0
        self._by_id: dict[str, Sequence] = {}
        self._adapters: dict[str, PreparedAdapter] = {}
        # Adapters that are let run dry, each for the waiting sequence of this number, which needs their room. They
        # stay so until that sequence's adapter has its place, or the sequence is gone.
        self._draining: dict[str, int] = {}

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

    def add(self, request: Submit, client: bytes, now: float) -> Sequence:
        """Queue a sequence."""
        sequence = Sequence(request, client, self._numbers, now)
        if request.adapter is not None:  # last in line to be forgotten
            self._adapters[request.adapter] = self._adapters.pop(request.adapter)
        self._numbers += 1
        self._by_id[request.id] = sequence
        self.waiting.append(sequence)
        return sequence

    def finish(self, id: str) -> Sequence | None:
        """Forget a sequence, wherever it is, and free what it holds; None if it is not known (any more)."""
        sequence = self._by_id.pop(id, None)
        if sequence is None:
            return None
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        else:
            self.waiting.remove(sequence)
        return sequence

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
        shares: list[tuple[Sequence, int]] = []
        budget = self.limits.batch_tokens
        # Decode tokens before prefill chunks: who has started keeps its pace whatever arrives.
        for sequence in sorted(self.running, key=lambda s: (s.pending > 1, s.number)):
            if budget and sequence in self.running:
                count = self._make_room(sequence, min(sequence.pending, budget), shares)
                budget -= count
        budget = self._admit(now, budget, shares)
        if not shares:
            return None
        self.steps += 1
        return self._plan(shares)

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
        assert all(not s.blocks and s.slot is None and not s.computed for s in self.waiting)
        assert len(self._by_id) == len(self.waiting) + len(self.running)
        for fingerprint in self._adapters:
            resident = self.slots.get(fingerprint)
            users = sum(1 for s in self.running if s.request.adapter == fingerprint)
            assert users == (resident.pins if resident else 0), "pins and running sequences differ"

    def _make_room(self, sequence: Sequence, count: int, shares: list[tuple[Sequence, int]]) -> int:
        """Give a running sequence blocks for `count` more tokens, at others' cost if need be; 0 if it had to go."""
        while not self.blocks.grow(sequence.blocks, sequence.computed + count):
            victim = max(self.running, key=lambda s: s.number)
            self._preempt(victim)
            shares[:] = [(s, n) for s, n in shares if s is not victim]
            if victim is sequence:
                return 0
        shares.append((sequence, count))
        return count

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._free(victim)
        victim.computed = 0
        victim.sampled_row = None
        self.preemptions += 1
        position = next((i for i, s in enumerate(self.waiting) if s.number > victim.number), len(self.waiting))
        self.waiting.insert(position, victim)

    def _admit(self, now: float, budget: int, shares: list[tuple[Sequence, int]]) -> int:
        """Start waiting sequences, oldest first, passing over what cannot run yet; returns the budget left."""
        waiting = {s.number for s in self.waiting}
        self._draining = {adapter: n for adapter, n in self._draining.items() if n in waiting}
        wanted: set[str] = set()
        for sequence in list(self.waiting):
            if not budget or len(self.running) >= self.limits.sequences:
                break
            starving = now - sequence.arrived > PATIENCE
            fingerprint = sequence.request.adapter
            if fingerprint is not None:
                if self._draining.get(fingerprint, sequence.number) < sequence.number:
                    continue
                if not self._adapter_ready(sequence, fingerprint, starving, wanted):
                    continue
            # Keep a block for each running sequence's next token, so that admission does not cause preemption.
            spare = self.blocks.free - len(self.running)
            if self.blocks.needed(sequence.length + 1) > spare and self.running:
                if starving:
                    break
                continue
            self._start(sequence)
            budget -= self._make_room(sequence, min(sequence.pending, budget), shares)
        return budget

    def _adapter_ready(self, sequence: Sequence, fingerprint: str, starving: bool, wanted: set[str]) -> bool:
        """Whether the adapter can be used now; if not, see to its loading, or have another drained for it."""
        resident = self.slots.get(fingerprint)
        wanted.add(fingerprint)
        if resident is None:
            if any(n < sequence.number for n in self._draining.values()):
                return False  # what becomes free is kept for an older sequence
            cleared, install = self.slots.place(self._adapters[fingerprint], keep=wanted)
            if install is None:
                if starving:
                    self._drain_for(sequence, wanted)
                return False
            self.commands += [*map(ClearSlot, cleared), install]
        self._draining = {adapter: n for adapter, n in self._draining.items() if n != sequence.number}
        return resident is not None and resident.ready

    def _drain_for(self, sequence: Sequence, wanted: set[str]) -> None:
        """Let another adapter run dry for `sequence`, unless one still does: one after the other until it fits."""
        if any(n == sequence.number and self.slots.in_use(adapter) for adapter, n in self._draining.items()):
            return
        victim = self.slots.lightest(exclude=wanted | self._draining.keys())
        if victim is not None:
            self._draining[victim] = sequence.number

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        if sequence.request.adapter is not None:
            sequence.slot = self.slots.pin(sequence.request.adapter)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        if sequence.request.adapter is not None:
            self.slots.unpin(sequence.request.adapter)
        sequence.slot = None

    def _plan(self, shares: list[tuple[Sequence, int]]) -> Step:
        shares = sorted(shares, key=lambda share: (share[1] > 1, share[0].number))
        plans: list[SequencePlan] = []
        chunks: list[LoraChunk] = []
        rows: list[Sequence] = []
        start = 0
        for sequence, count in shares:
            end = sequence.computed + count
            sample = end == sequence.length
            tokens = sequence.tokens(sequence.computed, end)
            if sequence.sampled_row is not None:
                tokens = (-1 - sequence.sampled_row,)
            plans.append(SequencePlan(tokens, sequence.computed, tuple(sequence.blocks), sample))
            if sequence.slot is not None:
                chunks.append(LoraChunk(sequence.slot, start, count))
            if sample:
                rows.append(sequence)
            sequence.computed = end
            sequence.sampled_row = None
            start += count
        planned = {sequence.number for sequence, _ in shares}
        for sequence in self.running:
            if sequence.number not in planned:
                sequence.sampled_row = None  # its row is overwritten by this step's samples
        return Step(StepPlan(self.epoch, self.steps, tuple(plans), tuple(chunks)), rows)
