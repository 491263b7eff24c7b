"""Stop strings in text that arrives in pieces. Knows text only: no tokens, no requests."""

from __future__ import annotations

import functools
from collections.abc import Sequence


class _Needle:
    """One string that is looked for, by Knuth, Morris and Pratt: a fixed amount of work a character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # how many of its first characters the text so far ends with
        self._shorter = _borders(text)

    def push(self, character: str) -> bool:
        """Whether the text, with `character` added, ends with this string."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._shorter[self.matched]
        self.matched += self.text[self.matched] == character
        complete = self.matched == len(self.text)
        if complete:  # the next one may overlap this one
            self.matched = self._shorter[self.matched]
        return complete


@functools.lru_cache(maxsize=256)
def _borders(text: str) -> tuple[int, ...]:
    """Entry n is the length of the longest proper border of text[:n]; kept, since a request's choices share it."""
    borders = [0, 0]
    for n in range(1, len(text)):
        border = borders[n]
        while border and text[border] != text[n]:
            border = borders[border]
        borders.append(border + (text[border] == text[n]))
    return tuple(borders)


class StopStrings:
    """Finds whichever of `stops` (none empty) is complete first, and holds back what may be the start of one.

    Where several are complete at the same character, the longest counts. The answer does not depend on how
    the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._needles = [_Needle(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Add `text`: what may be shown now, and the stop string if one is complete.

        Unless `armed`, a stop string that `text` completes is ordinary text.
        """
        if not self._needles:
            return text, None
        whole = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            # Every needle has to see every character, so no short cut here.
            complete = [needle.text for needle in self._needles if needle.push(character)]
            if complete and armed:
                self._held = ""
                return whole[: end - len(complete[0])], complete[0]
        held = max(needle.matched for needle in self._needles)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held], None

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held
