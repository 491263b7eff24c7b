"""Adapters merged into one: each merge is made once by the loader, whoever asks. Authorises and fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from motet.api.adapters.load_log import load_stage
from motet.api.adapters.outcomes import Loaded, LoadLimits, Outcomes
from motet.api.adapters.preparer import Preparer
from motet.api.adapters.single_flight import SingleFlight
from motet.core.errors import MotetError
from motet.core.messages import AdapterPart

Key: TypeAlias = tuple[tuple[Loaded, float], ...]  # the adapters and their weights

MERGED = "merged"
"""The name of a merge, and the source that metrics give for it."""


class AdapterMerges:
    """The merges that run, are done, or failed a moment ago."""

    def __init__(self, preparer: Preparer, limits: LoadLimits) -> None:
        self._preparer = preparer
        self._running: SingleFlight[Key, Loaded] = SingleFlight(limits.waiting)
        self._outcomes: Outcomes[Key] = Outcomes(limits)

    async def get(self, parts: Sequence[tuple[Loaded, float]]) -> Loaded:
        """The weighted sum of `parts`, with the first one's directory. Raises MotetError as a load does."""
        key = tuple(parts)
        return self._outcomes.known(key) or await self._running.run(key, lambda: self._merge(key))

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
