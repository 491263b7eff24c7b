"""Which running sequences make room for others, and in which order.

When a running sequence needs a block and none is free, the running sequence that is last in the order (priority.py) is
preempted. A waiting sequence preempts only sequences with a worse priority, which is a higher number. A preempted
sequence waits again, without its blocks, and is computed again later.
"""

from __future__ import annotations

import math

from motet.engine.schedule.batch import Batch
from motet.engine.schedule.sequence import Sequence
from motet.engine.schedule.waiting_queue import WaitingQueue


class Preemption:
    """Moves running sequences back to the waiting ones."""

    def __init__(self, batch: Batch, queue: WaitingQueue) -> None:
        self.count = 0
        self._batch, self._queue = batch, queue
        self._available: dict[int, float] = {}  # by priority, as long as the batch has the version
        self._version = 0

    def preempt(self, victim: Sequence) -> None:
        """Move a running sequence back to the waiting ones."""
        self._batch.remove(victim)
        victim.num_computed_tokens = 0
        victim.sampled_row = None
        self._queue.add(victim)
        self.count += 1

    def add_tokens(self, sequence: Sequence) -> None:
        """Add a running sequence's next tokens to the step.

        While blocks are missing, the last running sequence is preempted, which may be `sequence` itself.
        """
        count = min(sequence.num_pending_tokens, self._batch.tokens_left)
        while not self._batch.add_tokens(sequence, count):
            victim = max(self._batch.running, key=lambda s: s.precedence)
            self.preempt(victim)
            if victim is sequence:
                return

    def worse(self, sequence: Sequence) -> list[Sequence]:
        """The running sequences with a worse priority than `sequence`; the last one is preempted first."""
        worse = [s for s in self._batch.running if s.request.priority > sequence.request.priority]
        return sorted(worse, key=lambda s: s.precedence)

    def preempt_worst(self, sequence: Sequence) -> None:
        """Preempt the last running sequence with a worse priority than `sequence`."""
        self.preempt(self.worse(sequence)[-1])

    def free_blocks(self, sequence: Sequence, count: int) -> bool:
        """Preempt sequences with a worse priority until `count` blocks are free for the waiting `sequence`.

        Preempts nothing and returns False if that cannot free enough.
        """
        if count > self._available_blocks(sequence):
            return False
        while self._batch.running and count > self._batch.blocks.free - len(self._batch.running):
            self.preempt_worst(sequence)
        return True

    def _available_blocks(self, sequence: Sequence) -> float:
        """The blocks that are free, or would be without the sequences that have a worse priority than `sequence`.

        One block per remaining sequence is set aside for its next token, so that a start does not cause preemption.
        """
        if self._version != self._batch.version:
            self._version = self._batch.version
            self._available.clear()
        priority = sequence.request.priority
        if priority not in self._available:
            remaining = [s for s in self._batch.running if s.request.priority <= priority]
            reclaimable = {b for s in self.worse(sequence) for b in s.blocks} - {b for s in remaining for b in s.blocks}
            free = self._batch.blocks.free + len(reclaimable) - len(remaining)
            self._available[priority] = free if remaining else math.inf
        return self._available[priority]
