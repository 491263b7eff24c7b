"""Merges adapters: the loader computes each merge once, for all callers. Does not authorise or fetch."""

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
"""The name of every merge, and its source in metrics."""


class MergeRate:
    """Limits the new merges per caller and minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # the caller of the latest merge is the last

    def count(self, owner: str) -> None:
        """Count a new merge. Raises Overloaded if `owner` has reached the limit."""
        now = time.monotonic()
        times = self._times.setdefault(owner, deque())
        while times and times[0] <= now - MINUTE:
            times.popleft()
        if len(times) >= self._per_minute:
            raise Overloaded(
                f"you have made {self._per_minute} new merges within a minute (the maximum); reuse earlier "
                f"combinations of adapters and weights, or try again in {times[0] + MINUTE - now:.0f} s",
                param="merged_adapters",
                code=error_codes.RATE_LIMIT_EXCEEDED,
            )
        times.append(now)
        self._times.move_to_end(owner)
        while self._times and next(iter(self._times.values()))[-1] <= now - MINUTE:
            self._times.popitem(last=False)


class AdapterMerges:
    """The merges: running, finished, and recently failed."""

    def __init__(self, preparer: Preparer, limits: LoadLimits) -> None:
        self._preparer = preparer
        self._rate = MergeRate(limits.merges_per_minute)
        self._running: SingleFlight[Key, Loaded] = SingleFlight(limits.waiting)
        self._outcomes: Outcomes[Key] = Outcomes(limits)

    async def get(self, parts: Sequence[tuple[Loaded, float]], owner: str = "") -> Loaded:
        """The weighted sum of `parts`, with the directory of the first. Raises the errors of a load.

        Raises Overloaded if `owner` has made too many new merges: each may take as much disk space as an adapter.
        """
        key = tuple(parts)
        if (merged := self._outcomes.known(key)) is not None:
            return merged
        if key not in self._running:
            self._rate.count(owner)
        return await self._running.run(key, lambda: self._merge(key))

    async def close(self) -> None:
        """Cancel all merges."""
        await self._running.close()

    async def _merge(self, key: Key) -> Loaded:
        parts = [AdapterPart(str(loaded.directory), weight) for loaded, weight in key]
        try:
            with load_stage("merge", MERGED, "+".join(loaded.prepared.name for loaded, _ in key)) as fields:
                prepared = await self._preparer.prepare("the merged adapter", parts)
                fields["bytes"] = prepared.bytes
            renamed = msgspec.structs.replace(prepared, name=MERGED)
            merged = Loaded(key[0][0].directory, renamed, copied=key[0][0].copied)
        except MotetError as error:
            self._outcomes.failed(key, error)
            raise
        self._outcomes.done(key, merged)
        return merged
