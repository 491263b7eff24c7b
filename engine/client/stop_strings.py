"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

import functools
from collections.abc import Sequence


class _Needle:
    """Matches one string by the Knuth-Morris-Pratt algorithm, with constant work per character on average."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # number of its first characters that the text so far ends with
        self._shorter = _borders(text)

    def push(self, character: str) -> bool:
        """Whether the text, with `character` added, ends with this string."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._shorter[self.matched]
        self.matched += self.text[self.matched] == character
        complete = self.matched == len(self.text)
        if complete:  # the next match may overlap this one
            self.matched = self._shorter[self.matched]
        return complete


@functools.lru_cache(maxsize=256)
def _borders(text: str) -> tuple[int, ...]:
    """Entry n is the length of the longest proper border of text[:n]. Cached: a request's choices share it."""
    borders = [0, 0]
    for n in range(1, len(text)):
        border = borders[n]
        while border and text[border] != text[n]:
            border = borders[border]
        borders.append(border + (text[border] == text[n]))
    return tuple(borders)


class StopStrings:
    """Finds the first complete string of `stops` (none empty), and holds back text that may be the start of one.

    If several are complete at the same character, the longest counts. The result does not depend on how the text is
    split into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._needles = [_Needle(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._held_back = ""

    def push(self, text: str, *, enabled: bool = True) -> tuple[str, str | None]:
        """Add `text`. Returns the text that can be output now, and the stop string if one is complete.

        Unless `enabled`, a stop string that `text` completes is ordinary text.
        """
        if not self._needles:
            return text, None
        whole = self._held_back + text
        for end, character in enumerate(text, start=len(self._held_back) + 1):
            # Do not stop early: every needle must see every character.
            complete = [needle.text for needle in self._needles if needle.push(character)]
            if complete and enabled:
                self._held_back = ""
                return whole[: end - len(complete[0])], complete[0]
        length = max(needle.matched for needle in self._needles)
        self._held_back = whole[len(whole) - length :]
        return whole[: len(whole) - length], None

    def flush(self) -> str:
        """The text that was held back, once no more text can come."""
        text, self._held_back = self._held_back, ""
        return text
