"""How loads went: what is done, while its files are there, and what failed a moment ago. Bounded; loads nothing."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from motet.api.adapters.source_calls import presentable
from motet.core.errors import AdapterRefused, Forbidden, MotetError, NotFound, Unauthenticated
from motet.core.messages import PreparedAdapter

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Failures that depend on whose token was sent, and so say nothing about another caller's chances.
OF_THE_CALLER = (Unauthenticated, Forbidden, NotFound)


class LoadLimits(msgspec.Struct, frozen=True):
    """Limits on loading. Times are in seconds; counts are for each source, but for the caches'.

    `merges_per_minute` are new merges of one caller; `cache_bytes` is --cache-size (None: auto).
    """

    authorisation_seconds: float = 60.0
    stale_seconds: float = 24 * 3600.0
    refresh_wait_seconds: float = 2.0
    retry_seconds: float = 5.0
    unknown_seconds: float = 10.0
    resolve_seconds: float = 30.0
    fetch_seconds: float = 600.0
    prepare_seconds: float = 300.0
    writing_seconds: float = 5.0
    abandoned_seconds: float = 10.0
    slot_seconds: float = 10.0
    watch_seconds: float = 1.0
    stall_seconds: float = 60.0
    stall_bytes: int = 64 << 10
    largest_adapter: int = 8 << 30
    failure_seconds: float = 10.0
    refusal_seconds: float = 300.0
    fetches: int = 4
    preparations: int = 4
    waiting: int = 64
    remembered: int = 1024
    authorisations: int = 8192
    merges_per_minute: int = 30
    cache_bytes: int | None = None


class Loaded(msgspec.Struct, frozen=True):
    """An adapter's own files, and what the loader made of them.

    `copied`: `directory` is the cache's copy. Elsewhere it is the source's own, and may lie on a mount that hangs.
    """

    directory: Path
    prepared: PreparedAdapter
    copied: bool = False

    def intact(self) -> bool:
        """Whether the files in the cache are still there; caches may be emptied by hand."""
        return (not self.copied or self.directory.is_dir()) and all(Path(f).is_file() for f in self.prepared.files)


class Outcomes(Generic[Key]):
    """What is known of finished loads; of each kind the `remembered` used last."""

    def __init__(self, limits: LoadLimits) -> None:
        self._limits = limits
        self._done: OrderedDict[Key, Loaded] = OrderedDict()
        self._failed: OrderedDict[Key, tuple[float, MotetError]] = OrderedDict()

    def known(self, key: Key) -> Loaded | None:
        """The finished load for `key`, if there is one. Raises its failure, if that is fresh."""
        if (loaded := self._done.get(key)) is not None:
            if loaded.intact():
                self._done.move_to_end(key)
                return loaded
            del self._done[key]
        if (failure := self._failed.get(key)) is not None:
            until, error = failure
            if time.monotonic() < until:
                raise presentable(error)
            del self._failed[key]
        return None

    def done(self, key: Key, loaded: Loaded) -> None:
        """Remember a load that went well."""
        self._keep(self._done, key, loaded)

    def failed(self, key: Key, error: MotetError) -> None:
        """Remember a load that failed, if that says something about the next one."""
        if not isinstance(error, OF_THE_CALLER):
            limits = self._limits
            lasts = limits.refusal_seconds if isinstance(error, AdapterRefused) else limits.failure_seconds
            self._keep(self._failed, key, (time.monotonic() + lasts, error))

    def _keep(self, cache: OrderedDict[Key, Value], key: Key, value: Value) -> None:
        cache[key] = value
        cache.move_to_end(key)
        if len(cache) > self._limits.remembered:
            cache.popitem(last=False)
