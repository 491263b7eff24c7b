"""Decides, step by step, which sequences run and with how many tokens.

Continuous batching (Yu et al., "Orca", OSDI 2022) over paged blocks (Kwon et al., "PagedAttention", SOSP 2023). Each
rule has a file: the order of sequences (priority.py), the content of a step (batch.py), which waiting sequences start
(admission.py), which running sequences make room (preemption.py), and which adapters do (adapter_eviction.py).
"""

from __future__ import annotations

from collections import Counter

from motet.core.messages import AddRequest, PreparedAdapter
from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.admission import Admission
from motet.engine.schedule.batch import Batch, SchedulerConfig, Step
from motet.engine.schedule.kv_block_manager import BlockManager
from motet.engine.schedule.plan import ClearSlot, InstallAdapter
from motet.engine.schedule.preemption import Preemption
from motet.engine.schedule.priority import OwnerTurns, Precedence
from motet.engine.schedule.sequence import Sequence
from motet.engine.schedule.waiting_queue import WaitingQueue

MAX_ADAPTERS = 16384
"""Registered adapters; only those in slots take device memory."""


class Scheduler:
    """All sequences that have not ended, and the steps that compute them. Has no tensors, and no clock but `now`."""

    def __init__(self, blocks: BlockManager, slots: AdapterSlots, config: SchedulerConfig, engine_id: str = "") -> None:
        self.blocks, self.slots, self.config, self.engine_id = blocks, slots, config, engine_id
        self.steps = 0
        self.turns = OwnerTurns()
        self._arrivals = 0
        self._sequences: dict[str, Sequence] = {}
        self._adapters: dict[str, PreparedAdapter] = {}
        self._queue = WaitingQueue(self.turns)
        self._batch = Batch(blocks, slots, config)
        self._preemption = Preemption(self._batch, self._queue)
        self._admission = Admission(self._batch, self._preemption, self._queue, self._sequences, self._adapters)

    def schedule(self, now: float) -> Step | None:
        """The next step, or None if nothing can run. Before the step, the ranks need `take_commands`.

        The last step's samples need not be recorded yet, but those of the step before it must be.
        """
        self._batch.begin_step()
        for sequence in self._batch.in_step_order():
            if self._batch.tokens_left and self.is_running(sequence) and sequence.can_run:
                self._preemption.add_tokens(sequence)
        self._admission.start_sequences(now)
        step = self._batch.finish_step(self.engine_id, self.steps + 1)
        if step is not None:
            self.steps += 1
        return step

    def take_commands(self) -> list[InstallAdapter | ClearSlot]:
        """The changes of adapter slots since the last call, in order, for every rank."""
        commands = self._admission.commands.copy()
        self._admission.commands.clear()
        return commands

    def record_samples(self, step: Step, tokens: list[int]) -> list[Sequence | None]:
        """Append the token of each of the step's rows to its sequence; returns the sequences, None if one has ended."""
        rows: list[Sequence | None] = []
        for sequence, token in zip(step.rows, tokens, strict=True):
            present = self.has(sequence)
            if present:
                sequence.num_unread -= 1
                sequence.output.append(token)
            rows.append(sequence if present else None)
        return rows

    def add(self, request: AddRequest, client: bytes, now: float) -> Sequence:
        """Queue a sequence."""
        turn = self.turns.enter(request.owner, request.priority)
        room = self.config.max_context - len(request.prompt)
        max_output = max(1, min(request.params.max_tokens, room))
        sequence = Sequence(request, client, Precedence(request.priority, turn, self._arrivals), now, max_output)
        self._arrivals += 1
        if request.adapter is not None:  # the last one to be forgotten
            self._adapters[request.adapter] = self._adapters.pop(request.adapter)
        self._sequences[request.id] = sequence
        self._queue.add(sequence)
        return sequence

    def finish(self, id: str) -> Sequence | None:
        """End a sequence, running or waiting, and free its blocks; None if the id is unknown or has ended."""
        sequence = self._sequences.pop(id, None)
        if sequence is None:
            return None
        self.turns.leave(sequence.request.owner)
        if self.is_running(sequence):
            self._batch.remove(sequence)
        else:
            self._queue.remove(sequence)
        return sequence

    def register(self, adapter: PreparedAdapter) -> None:
        """Register an adapter. Raises AdapterRefused if it is too large for the pool."""
        self.slots.check_size(adapter)
        self._adapters[adapter.fingerprint] = adapter
        if len(self._adapters) > MAX_ADAPTERS:
            used = {s.request.adapter for s in self._sequences.values()}
            unused = (name for name in self._adapters if name not in used and self.slots.get(name) is None)
            if (oldest := next(unused, None)) is not None:
                del self._adapters[oldest]

    def is_registered(self, fingerprint: str) -> bool:
        """Whether requests can name this adapter."""
        return fingerprint in self._adapters

    @property
    def running(self) -> list[Sequence]:
        """The running sequences."""
        return self._batch.running

    @property
    def waiting(self) -> list[Sequence]:
        """The waiting sequences, in their order."""
        return self._queue.sequences

    @property
    def preemptions(self) -> int:
        """How many times a sequence was preempted."""
        return self._preemption.count

    def has(self, sequence: Sequence) -> bool:
        """Whether the sequence has not ended."""
        return self._sequences.get(sequence.id) is sequence

    def is_running(self, sequence: Sequence) -> bool:
        """Whether the sequence is in the running batch."""
        return sequence in self._batch.running

    def sequences(self) -> list[Sequence]:
        """All sequences that have not ended."""
        return list(self._sequences.values())

    def in_group(self, group: str) -> list[Sequence]:
        """The sequences of a group (see AddRequest.belongs_to) that have not ended."""
        return [s for s in self._sequences.values() if s.request.belongs_to(group)]

    def waiting_for_adapter(self, fingerprint: str) -> list[Sequence]:
        """The waiting sequences of an adapter."""
        return [s for s in self.waiting if s.request.adapter == fingerprint]

    def check_integrity(self) -> None:
        """Assert that blocks, slots, queue and batch agree with each other."""
        self.blocks.check_integrity([s.blocks for s in self.running])
        self.slots.check_integrity()
        assert all(not s.blocks and s.slot is None and not s.num_computed_tokens for s in self.waiting)
        assert len(self._sequences) == len(self.waiting) + len(self.running)
        assert self.turns.counts == Counter(s.request.owner for s in self._sequences.values())
        for fingerprint in self._adapters:
            resident = self.slots.get(fingerprint)
            users = sum(1 for s in self.running if s.request.adapter == fingerprint)
            assert users == (resident.pins if resident else 0), "pins and running sequences differ"
