"""Limits label values that come from requests, such as adapter names: the busiest have their own, others share one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

OTHER = "other"

HALF_LIFE = 600.0
"""Seconds after which a value's count is halved."""

MIN_RATIO = 2.0
"""A value replaces the least busy named one if it has this many times its requests."""

MIN_REQUESTS = 16
"""Requests that a value needs to replace another."""

CANDIDATES = 4
"""Unnamed values per named one whose requests are counted."""


class BoundedLabels:
    """At most `limit` named values; `forget(value)` drops the series of a value that is no longer named.

    Without `forget`, named values stay named, since the series of several processes cannot be dropped. A counter never
    decreases: what was counted as `other` stays there.
    """

    def __init__(self, limit: int, forget: Callable[[str], None] | None = None) -> None:
        self._limit, self._forget = limit, forget
        self._named: Counter[str] = Counter()
        self._candidates: Counter[str] = Counter()
        self._halved = time.monotonic()

    def label(self, value: str) -> str:
        """Count a request of `value` and return its label: the value itself, or `other`."""
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
        """Halve old counts, and drop the least busy candidates if there are many."""
        if (now := time.monotonic()) - self._halved > HALF_LIFE:
            self._halved = now
            for counts in (self._named, self._candidates):
                for value in list(counts):
                    counts[value] //= 2
        if len(self._candidates) > CANDIDATES * self._limit:
            self._candidates = Counter(dict(self._candidates.most_common(len(self._candidates) // 2)))
