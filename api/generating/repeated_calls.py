"""Finds a call that an answer has made before, so that the answer can end there.

Where a grammar allows only calls, a weak model writes the same call again and again, and a client runs the tool each
time.
"""

from __future__ import annotations

from motet.core.tools import CallPiece


class RepeatedCalls:
    """Passes calls on piece by piece, and holds back one that is the same as an earlier one so far.

    `found` is true once such a call is complete: it has the name and the arguments of an earlier one.
    """

    def __init__(self) -> None:
        self.found = False
        self._earlier: list[str] = []
        self._current: list[str] = []
        self._length = 0
        self._alike: list[str] = []  # the earlier calls that begin as the current one does
        self._held: list[CallPiece] = []

    def push(self, piece: CallPiece) -> list[CallPiece]:
        """The pieces, this one included, of a call that differs from all earlier ones."""
        added = piece.arguments
        if piece.name is not None:
            if self._current:
                self._earlier.append("".join(self._current))
            added = f"{piece.name}\0{added}"
            self._alike, self._current, self._length = self._earlier, [], 0
        self._alike = [call for call in self._alike if call.startswith(added, self._length)]
        self._current.append(added)
        self._length += len(added)
        self._held.append(piece)
        if self._alike:
            self.found = any(len(call) == self._length for call in self._alike)
            return []
        released, self._held = self._held, []
        return released
