"""Finds a call that repeats an earlier one of the answer, so that the answer can end there.

Where a grammar allows only calls, a weak model repeats the same call, and a client runs the tool each time.
"""

from __future__ import annotations

from motet.core.tool_parser import CallPiece


class RepeatedCalls:
    """Passes on calls piece by piece, and holds back a call while it equals the beginning of an earlier one.

    `found` is true once a call is complete that has the name and the arguments of an earlier one.
    """

    def __init__(self) -> None:
        self.found = False
        self._earlier: list[str] = []
        self._current: list[str] = []
        self._length = 0
        self._matches: list[str] = []  # the earlier calls that begin like the current one
        self._held_back: list[CallPiece] = []

    def push(self, piece: CallPiece) -> list[CallPiece]:
        """The pieces to pass on: this one and those held back, if the call differs from all earlier ones."""
        added = piece.arguments
        if piece.name is not None:
            if self._current:
                self._earlier.append("".join(self._current))
            added = f"{piece.name}\0{added}"
            self._matches, self._current, self._length = self._earlier, [], 0
        self._matches = [call for call in self._matches if call.startswith(added, self._length)]
        self._current.append(added)
        self._length += len(added)
        self._held_back.append(piece)
        if self._matches:
            self.found = any(len(call) == self._length for call in self._matches)
            return []
        released, self._held_back = self._held_back, []
        return released
