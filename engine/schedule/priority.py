"""Which sequence goes first: by priority, then by its owner's turn, then by arrival.

Owners (API keys) take turns, sequence by sequence, like flows in start-time fair queueing (Goyal et al., SIGCOMM
1996): however much one owner queues, the next sequence of another owner starts as soon as one can. Without API keys,
all sequences have the same owner.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Precedence(NamedTuple):
    """A sequence's place in the order of all sequences; the lowest goes first. `number` counts arrivals."""

    priority: int
    turn: int
    number: int


class Flow(NamedTuple):
    """The sequences of one owner that take turns with other owners' sequences.

    `background` sequences, with a priority above 0 as batches have it, are a flow of their own and do not delay the
    owner's other sequences. There is no flow per priority, since callers choose priorities.
    """

    owner: str
    background: bool


class OwnerTurns:
    """Gives every sequence the turn of its owner."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # sequences that have not ended, by owner
        self._current = 0  # the latest turn of a sequence that has started
        self._next: dict[Flow, int] = {}  # the earliest turn of the flow's next sequence

    def enter(self, owner: str, priority: int) -> int:
        """The turn of a new sequence."""
        flow = Flow(owner, priority > 0)
        turn = max(self._current, self._next.get(flow, 0))
        self._next[flow] = turn + 1
        self.counts[owner] += 1
        return turn

    def start(self, turn: int) -> None:
        """A sequence with this turn has started."""
        self._current = max(self._current, turn)

    def leave(self, owner: str) -> None:
        """A sequence of this owner has ended."""
        self.counts[owner] -= 1
        if not self.counts[owner]:
            del self.counts[owner]
            self._forget(owner)

    def _forget(self, idle_owner: str) -> None:
        """Forget the next turns of owners without sequences, once the current turn has reached them.

        Forgotten at once, an owner that sends one sequence after the other would always go before an owner with
        several waiting sequences. `idle_owner`, which has just become idle, is put back by one turn at most: sequences
        that never ran do not count against it.
        """
        for flow, turn in list(self._next.items()):
            if flow.owner in self.counts:
                continue
            if turn <= self._current:
                del self._next[flow]
            elif flow.owner == idle_owner:
                self._next[flow] = self._current + 1
