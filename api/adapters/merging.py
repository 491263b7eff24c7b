"""Merges adapters: the loader makes each merge once, for all callers. Authorises and fetches nothing."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from motet.api.adapters.disk_cache import Loaded
from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.load_log import load_stage
from motet.api.adapters.loading import Preparer
from motet.api.adapters.shared_work import Outcomes, SingleFlight
from motet.core import error_codes
from motet.core.errors import MotetError, Overloaded
from motet.core.messages import AdapterPart

Key: TypeAlias = tuple[tuple[Loaded, float], ...]  # the adapters and their weights

MINUTE = 60.0

MERGED = "merged"
"""The name of a merge, and the source that metrics give for it."""


class MergeRate:
    """How many new merges each caller has had made within the last minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # the caller of the latest merge is the last

    def count(self, owner: str) -> None:
        """Count a new merge. Raises Overloaded if that is too many."""
        now = time.monotonic()
        times = self._times.setdefault(owner, deque())
        while times and times[0] <= now - MINUTE:
            times.popleft()
        if len(times) >= self._per_minute:
            raise Overloaded(
                f"{self._per_minute} new merges of adapters were made for you within a minute (the maximum); use "
                f"adapters and weights that were merged before, or try again in {times[0] + MINUTE - now:.0f} s",
                param="merged_adapters",
                code=error_codes.RATE_LIMIT_EXCEEDED,
            )
        times.append(now)
        self._times.move_to_end(owner)
        while self._times and next(iter(self._times.values()))[-1] <= now - MINUTE:
            self._times.popitem(last=False)


class AdapterMerges:
    """The merges that run, are done, or failed a moment ago."""

    def __init__(self, preparer: Preparer, limits: LoadLimits) -> None:
        self._preparer = preparer
        self._rate = MergeRate(limits.merges_per_minute)
        self._running: SingleFlight[Key, Loaded] = SingleFlight(limits.waiting)
        self._outcomes: Outcomes[Key] = Outcomes(limits)

    async def get(self, parts: Sequence[tuple[Loaded, float]], owner: str = "") -> Loaded:
        """The weighted sum of `parts`, with the first one's directory. Raises MotetError as a load does.

        Raises Overloaded when `owner` has had too many new ones made: each takes up to an adapter's size of the disk.
        """
        key = tuple(parts)
        if (known := self._outcomes.known(key)) is not None:
            return known
        if key not in self._running:
            self._rate.count(owner)
        return await self._running.run(key, lambda: self._merge(key))

    async def close(self) -> None:
        """Give up every merge."""
        await self._running.close()

    async def _merge(self, key: Key) -> Loaded:
        parts = [AdapterPart(str(loaded.directory), weight) for loaded, weight in key]
        try:
            with load_stage("merge", MERGED, "+".join(loaded.prepared.name for loaded, _ in key)) as fields:
                prepared = await self._preparer.prepare("the merged adapter", parts)
                fields["bytes"] = prepared.bytes
            named = msgspec.structs.replace(prepared, name=MERGED)
            merged = Loaded(key[0][0].directory, named, copied=key[0][0].copied)
        except MotetError as error:
            self._outcomes.failed(key, error)
            raise
        self._outcomes.done(key, merged)
        return merged
