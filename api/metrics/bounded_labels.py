"""Label values that requests bring along, such as adapters' names: the busiest keep their own, all others share one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

OTHER = "other"

HALF_LIFE = 600.0
"""Seconds after which what was counted of a value counts half."""

MIN_RATIO = 2.0
"""How many times as busy as the least busy named value another must be to take its place."""

MIN_REQUESTS = 16
"""Requests that a value needs to take another's place."""

CANDIDATES = 4
"""Values per named one whose requests are counted while they have no name of their own."""


class BoundedLabels:
    """At most `limit` named values; `forget` is called with a value that loses its name, to drop its series.

    Without `forget` a value that is named stays so, for the counts of several processes cannot be dropped. A counter
    never goes down: what was counted as `other` stays there.
    """

    def __init__(self, limit: int, forget: Callable[[str], None] | None = None) -> None:
        self._limit, self._forget = limit, forget
        self._named: Counter[str] = Counter()
        self._candidates: Counter[str] = Counter()
        self._halved = time.monotonic()

    def label(self, value: str) -> str:
        """The label of one more request of `value`: the value itself, or `other`."""
        if value in self._named:
            self._named[value] += 1
            return value
        if len(self._named) < self._limit:
            self._named[value] = 1
            return value
        if self._forget is None:
            return OTHER
        self._decay()
        self._candidates[value] += 1
        least, count = min(self._named.items(), key=lambda item: item[1])
        if self._candidates[value] < max(MIN_REQUESTS, MIN_RATIO * count):
            return OTHER
        self._forget(least)
        del self._named[least]
        self._named[value] = self._candidates.pop(value)
        return value

    def _decay(self) -> None:
        """Let old counts fade, and forget the least busy candidates where there are many."""
        if (now := time.monotonic()) - self._halved > HALF_LIFE:
            self._halved = now
            for counts in (self._named, self._candidates):
                for value in list(counts):
                    counts[value] //= 2
        if len(self._candidates) > CANDIDATES * self._limit:
            self._candidates = Counter(dict(self._candidates.most_common(len(self._candidates) // 2)))
