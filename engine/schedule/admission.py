"""Which waiting sequences start: in their order, those for which there are tokens, an adapter slot and blocks."""

from __future__ import annotations

from collections.abc import Mapping

from motet.core.messages import PreparedAdapter
from motet.engine.schedule.adapter_eviction import DrainedAdapters, least_used, place
from motet.engine.schedule.batch import Batch
from motet.engine.schedule.plan import ClearSlot, InstallAdapter
from motet.engine.schedule.preemption import Preemption
from motet.engine.schedule.sequence import Sequence
from motet.engine.schedule.waiting_queue import WaitingQueue

STARVATION_SECONDS = 2.0
"""A sequence that has waited for longer starves: room is reserved for it."""


class Admission:
    """Starts waiting sequences. `adapters` are the registered ones, `sequences` all that have not ended, by id."""

    def __init__(
        self,
        batch: Batch,
        preemption: Preemption,
        queue: WaitingQueue,
        sequences: Mapping[str, Sequence],
        adapters: Mapping[str, PreparedAdapter],
    ) -> None:
        self.commands: list[InstallAdapter | ClearSlot] = []
        self._batch, self._preemption, self._queue = batch, preemption, queue
        self._sequences, self._adapters = sequences, adapters
        self._drained = DrainedAdapters(batch.slots)
        self._now = 0.0
        self._needed: set[str] = set()  # adapters of the sequences seen in this step; they stay in their slots

    def start_sequences(self, now: float) -> None:
        """Start waiting sequences and add their tokens to the step. Those that cannot start are skipped."""
        self._now = now
        self._needed.clear()
        self._drained.update(self._queue.sequences)
        # A preempted sequence starts again with all of its tokens, so they must be known.
        for sequence in [s for s in self._queue.sequences if not (s.blocked or s.num_unread)]:
            if not self._has_place(sequence):
                break
            prefix_owner = self._prefix_owner(sequence)
            if prefix_owner is not None and not self._has_prefix(prefix_owner, sequence):
                continue
            if not self._has_adapter(sequence):
                continue
            shared = self._num_prefix_blocks(sequence) if prefix_owner is not None else 0
            needed = self._batch.blocks.needed(sequence.num_tokens + 1) - shared
            if not self._preemption.free_blocks(sequence, needed):
                if self._starves(sequence):
                    break  # blocks that become free are reserved for it
                continue
            self._start(sequence, prefix_owner)

    def _has_place(self, sequence: Sequence) -> bool:
        """Whether the step has tokens left, and the batch a place, by preemption if need be."""
        return self._batch.tokens_left > 0 and (not self._batch.full or bool(self._preemption.worse(sequence)))

    def _starves(self, sequence: Sequence) -> bool:
        return self._now - sequence.arrival_time > STARVATION_SECONDS

    def _start(self, sequence: Sequence, prefix_owner: Sequence | None) -> None:
        """Start a sequence, and add its first tokens to the step."""
        if self._batch.full:
            self._preemption.preempt_worst(sequence)
        self._queue.start(sequence)
        if sequence.start_time is None:
            sequence.start_time = self._now
        prefix = prefix_owner.blocks[: self._num_prefix_blocks(sequence)] if prefix_owner is not None else []
        self._batch.start(sequence, prefix)
        self._preemption.add_tokens(sequence)

    def _num_prefix_blocks(self, sequence: Sequence) -> int:
        """Full blocks of the prompt. Its last token is always computed, for the logits."""
        return (len(sequence.request.prompt) - 1) // self._batch.blocks.block_size

    def _prefix_owner(self, sequence: Sequence) -> Sequence | None:
        """The sequence that has, or will have, the blocks of the same prompt: its `prefix_of`, or another choice."""
        prefix_of = sequence.request.prefix_of
        if prefix_of is None or sequence.wants_prompt_logprobs or not self._num_prefix_blocks(sequence):
            return None
        if (first := self._sequences.get(prefix_of)) is not None:
            return first if first.has_same_prompt(sequence) else None
        choices = (s for s in self._batch.running if s.request.prefix_of == prefix_of)
        return next((s for s in choices if self._has_prefix(s, sequence)), None)

    def _has_prefix(self, owner: Sequence, sequence: Sequence) -> bool:
        """Whether `owner` has computed the blocks that `sequence` can share."""
        return owner.num_computed_tokens >= self._num_prefix_blocks(sequence) * self._batch.blocks.block_size

    def _has_adapter(self, sequence: Sequence) -> bool:
        """Whether the sequence's adapter can be used now. If it has no slot, begin to install it."""
        fingerprint = sequence.request.adapter
        if fingerprint is None:
            return True
        if self._drained.closed_to(sequence):
            return False
        self._needed.add(fingerprint)
        resident = self._batch.slots.get(fingerprint)
        if resident is None and not self._install(sequence, self._adapters[fingerprint]):
            return False
        self._drained.stop(sequence)
        return resident is not None and resident.ready

    def _install(self, sequence: Sequence, adapter: PreparedAdapter) -> bool:
        """Begin to install the sequence's adapter. If there is no room, make some for a later step; then False."""
        if self._drained.any_before(sequence):
            return False
        commands = place(self._batch.slots, adapter, keep=self._needed)
        if commands is None and self._preempt_adapter(sequence):
            commands = place(self._batch.slots, adapter, keep=self._needed)
        if commands is None:
            if self._starves(sequence):
                self._drained.drain_for(sequence, keep=self._needed)
            return False
        self.commands += commands
        return True

    def _preempt_adapter(self, sequence: Sequence) -> bool:
        """Preempt all sequences of one adapter, if there is one that only sequences with a worse priority use."""
        worse = self._preemption.worse(sequence)
        others = {s.request.adapter for s in self._batch.running if s not in worse and s.request.adapter}
        victim = least_used(self._batch.slots, exclude=self._needed | others) if worse else None
        users = [s for s in worse if victim is not None and s.request.adapter == victim]
        for user in users:
            self._preemption.preempt(user)
        return bool(users)
