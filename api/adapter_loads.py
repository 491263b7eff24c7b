"""From a resolved adapter to a prepared one: fetched into the cache once, prepared once, whoever asks.

Knows nothing of names and authorises nobody: a caller must have resolved the adapter before coming here.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import msgspec

from motet.api.single_flight import SingleFlight
from motet.api.source_calls import call_source, presentable, unavailable
from motet.core.adapters import AdapterSource, ResolvedAdapter
from motet.core.errors import AdapterRefused, Forbidden, MotetError, NotFound, Unauthenticated
from motet.core.messages import PreparedAdapter

T = TypeVar("T")
Key: TypeAlias = tuple[str, str]  # id and revision at one source

LEFTOVER_SECONDS = 24 * 3600

# Failures that depend on whose token was sent, and so say nothing about another caller's chances.
OF_THE_CALLER = (Unauthenticated, Forbidden, NotFound)


class Loader(Protocol):
    """What is needed of the loader's client."""

    async def prepare(self, directory: Path) -> PreparedAdapter:
        """Parse, check and cut the adapter in `directory`. Raises AdapterRefused, Unavailable."""


class LoadLimits(msgspec.Struct, frozen=True):
    """Limits on loading. Times are in seconds; counts are for each source, but for the caches'."""

    resolve_seconds: float = 30.0
    fetch_seconds: float = 600.0
    prepare_seconds: float = 300.0
    failure_seconds: float = 10.0
    refusal_seconds: float = 300.0
    fetches: int = 4
    preparations: int = 4
    waiting: int = 64
    remembered: int = 1024


class Loaded(msgspec.Struct, frozen=True):
    """An adapter's own files, and what the loader made of them."""

    directory: Path
    prepared: PreparedAdapter

    def intact(self) -> bool:
        """Whether the files are still there; caches may be emptied by hand."""
        return self.directory.is_dir() and all(Path(file).is_file() for file in self.prepared.files)


class SourceLoads:
    """The loads of one source: those that run, those that are done, and those that failed a moment ago."""

    def __init__(self, source: AdapterSource, cache: Path, limits: LoadLimits) -> None:
        self._source = source
        self._cache = cache
        self._limits = limits
        self._fetching = asyncio.Semaphore(limits.fetches)
        self.running: SingleFlight[Key, Loaded] = SingleFlight(limits.waiting)
        self.done: OrderedDict[Key, Loaded] = OrderedDict()
        self.failed: OrderedDict[Key, tuple[float, MotetError]] = OrderedDict()

    def known(self, key: Key) -> Loaded | None:
        """The finished load for `key`, if there is one. Raises its failure, if that is fresh."""
        if (loaded := self.done.get(key)) is not None:
            if loaded.intact():
                self.done.move_to_end(key)
                return loaded
            del self.done[key]
        if (failure := self.failed.get(key)) is not None:
            until, error = failure
            if time.monotonic() < until:
                raise presentable(error)
            del self.failed[key]
        return None

    async def load(self, adapter: ResolvedAdapter, token: str | None, preparer: Preparer) -> Loaded:
        """Fetch and prepare `adapter`, and remember how that went."""
        key = (adapter.ref.id, adapter.revision)
        try:
            directory = await self._directory(adapter, token)
            loaded = Loaded(directory, await self._prepare(adapter, directory, preparer))
        except MotetError as error:
            if not isinstance(error, OF_THE_CALLER):
                limits = self._limits
                lasts = limits.refusal_seconds if isinstance(error, AdapterRefused) else limits.failure_seconds
                _keep(self.failed, key, (time.monotonic() + lasts, error), limits.remembered)
            raise
        _keep(self.done, key, loaded, self._limits.remembered)
        return loaded

    async def _prepare(self, adapter: ResolvedAdapter, directory: Path, preparer: Preparer) -> PreparedAdapter:
        try:
            return await preparer.prepare(adapter, directory)
        except AdapterRefused:
            if directory == self._target(adapter):  # our copy, and never the source's own files
                await asyncio.to_thread(_discard, directory)
            raise

    def _target(self, adapter: ResolvedAdapter) -> Path:
        """Where the cache has, or would have, the adapter's files."""
        name = "\0".join((adapter.ref.source, adapter.ref.id, adapter.revision))
        return self._cache / hashlib.sha256(name.encode()).hexdigest()[:32]

    async def _directory(self, adapter: ResolvedAdapter, token: str | None) -> Path:
        """The adapter's files: whole in the cache, or wherever the source keeps them."""
        target = self._target(adapter)
        if target.is_dir():
            return target
        try:
            async with self._fetching:
                return await self._fetch(adapter, token, target)
        except OSError as error:
            raise MotetError(f"the adapter cache cannot be written: {error.strerror}") from error

    async def _fetch(self, adapter: ResolvedAdapter, token: str | None, target: Path) -> Path:
        scratch = await asyncio.to_thread(_scratch, target)
        try:
            directory = await call_source(
                adapter.ref,
                token,
                self._limits.fetch_seconds,
                lambda: self._source.fetch(adapter, token, scratch),
            )
            if not directory.is_relative_to(scratch):
                return directory
            return await asyncio.to_thread(_move, directory, target)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


class Preparer:
    """The loader, with a limit on what is asked of it at once and a time-out."""

    def __init__(self, loader: Loader, limits: LoadLimits) -> None:
        self._loader = loader
        self._seconds = limits.prepare_seconds
        self._slots = asyncio.Semaphore(limits.preparations)

    async def prepare(self, adapter: ResolvedAdapter, directory: Path) -> PreparedAdapter:
        """The adapter in `directory`, prepared. Raises AdapterRefused, Unavailable."""
        async with self._slots:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._loader.prepare(directory)
            except TimeoutError:
                raise unavailable(f"{adapter.ref} was not prepared within {self._seconds:g} s") from None
            except MotetError as error:
                raise presentable(error, str(directory)) from None


class AdapterLoads:
    """Loads of every source. Concurrent callers of one adapter share one load, whoever of them gives up."""

    def __init__(self, sources: Mapping[str, AdapterSource], loader: Loader, cache: Path, limits: LoadLimits) -> None:
        _sweep(cache)
        self._sources = {name: SourceLoads(source, cache, limits) for name, source in sources.items()}
        self._preparer = Preparer(loader, limits)

    async def get(self, adapter: ResolvedAdapter, token: str | None) -> Loaded:
        """The loaded `adapter`, of a known source. Raises MotetError, Overloaded when too many wait."""
        loads = self._sources[adapter.ref.source]
        key = (adapter.ref.id, adapter.revision)
        while (loaded := loads.known(key)) is None:
            others = key in loads.running
            try:
                return await loads.running.run(key, lambda: loads.load(adapter, token, self._preparer))
            except OF_THE_CALLER:
                if not others:
                    raise
                # It was another caller's token that failed: go on with ours.
        return loaded

    async def close(self) -> None:
        """Give up every load."""
        for loads in self._sources.values():
            await loads.running.close()


def _sweep(cache: Path) -> None:
    """Remove what fetches left that were cut off by the end of their process, a day ago or more."""
    for scratch in cache.glob(".*"):
        try:
            if time.time() - scratch.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)
        except OSError:
            continue  # another process has just removed it


def _scratch(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def _move(directory: Path, target: Path) -> Path:
    """Rename `directory` to `target`; another process may have done the same with equal files."""
    try:
        directory.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    return target


def _discard(copy: Path) -> None:
    """Remove a copy from the cache, all at once for whoever looks for it there."""
    scratch = _scratch(copy)
    try:
        copy.rename(scratch / copy.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep(cache: OrderedDict[Key, T], key: Key, value: T, limit: int) -> None:
    """Put `value` into a bounded cache, which drops what was used least recently."""
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > limit:
        cache.popitem(last=False)
