"""The waiting sequences, in the order in which they start."""

from __future__ import annotations

import bisect

from motet.engine.schedule.priority import OwnerTurns
from motet.engine.schedule.sequence import Sequence


class WaitingQueue:
    """Sequences that have no blocks and no adapter slot; `sequences` are sorted by their precedence."""

    def __init__(self, turns: OwnerTurns) -> None:
        self.sequences: list[Sequence] = []
        self._turns = turns

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into its place."""
        bisect.insort(self.sequences, sequence, key=lambda s: s.precedence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended."""
        self.sequences.remove(sequence)

    def start(self, sequence: Sequence) -> None:
        """Remove a sequence that starts."""
        self.sequences.remove(sequence)
        self._turns.start(sequence.precedence.turn)
