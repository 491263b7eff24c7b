"""Loads resolved adapters: fetches each into the cache once and prepares it once, for all callers.

Does not parse names or authorise: resolve the adapter first.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec
from loguru import logger

from motet.api.adapters.disk_cache import Loaded, copy_directory
from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.load_log import load_stage
from motet.api.adapters.shared_work import TOKEN_ERRORS, Outcomes, SingleFlight
from motet.api.adapters.source_calls import FetchSlots, call_source, check_result, presentable, unavailable, watched
from motet.core import error_codes
from motet.core.adapter_source import AdapterSource, ResolvedAdapter
from motet.core.blocking_calls import BlockingCalls
from motet.core.disk_space import cache_full_error, is_disk_full
from motet.core.errors import AdapterRefused, MotetError, NotFound, Overloaded, Unavailable
from motet.core.messages import AdapterPart, PreparedAdapter
from motet.core.paths import sync_directory


class Loader(Protocol):
    """The part of LoaderClient that is needed here."""

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """Parse, check and shard the weighted sum of `parts`. Raises AdapterRefused, Unavailable."""


class Preparer:
    """The loader, with a time-out and a limit on concurrent preparations."""

    def __init__(self, loader: Loader, limits: LoadLimits) -> None:
        self._loader = loader
        self._seconds = limits.prepare_seconds
        self._slots = asyncio.Semaphore(limits.preparations)

    async def prepare(self, name: str, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """Prepare the sum of `parts`; errors call it `name`. Raises AdapterRefused, Unavailable."""
        async with self._slots:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._loader.prepare(parts)
            except TimeoutError:
                raise unavailable(f"{name} was not prepared within {self._seconds:g} s") from None
            except MotetError as error:
                for part in parts:
                    error = presentable(error, part.directory)
                raise error from None


Key: TypeAlias = tuple[str, str]  # id and revision at one source


class SourceLoads:
    """The loads of one source: running, finished, and recently failed."""

    def __init__(self, source: AdapterSource, cache: Path, limits: LoadLimits) -> None:
        self._source = source
        self._cache = cache
        self._limits = limits
        self._fetching = FetchSlots(limits.fetches, limits.slot_seconds)
        self._owners: Counter[str] = Counter()
        self._files = BlockingCalls("adapter-files")
        self.running: SingleFlight[Key, Loaded] = SingleFlight(limits.waiting, limits.abandoned_seconds)
        self.outcomes: Outcomes[Key] = Outcomes(limits)

    def check_share(self, owner: str) -> None:
        """Raise Overloaded if the API key `owner` has half of all loads; no limit without API keys."""
        if owner and self._owners[owner] >= max(1, self._limits.waiting // 2):
            raise Overloaded("too many adapters are being loaded for you; try again in a moment", param="model")

    async def load_for(self, owner: str, adapter: ResolvedAdapter, token: str | None, preparer: Preparer) -> Loaded:
        """Like `load`; counts the load for `owner`."""
        self._owners[owner] += 1
        try:
            return await self.load(adapter, token, preparer)
        finally:
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    async def load(self, adapter: ResolvedAdapter, token: str | None, preparer: Preparer) -> Loaded:
        """Fetch and prepare `adapter`, and store the outcome."""
        key = (adapter.ref.id, adapter.revision)
        try:
            directory = await self._directory(adapter, token)
            if self._source.local_files:
                prepared = await self._prepare_in_place(adapter, token, directory, preparer)
            else:
                prepared = await self._prepare(adapter, directory, preparer)
            loaded = Loaded(directory, prepared, copied=directory == self._target(adapter))
        except MotetError as error:
            self.outcomes.failed(key, error)
            raise
        self.outcomes.done(key, loaded)
        return loaded

    async def _prepare(self, adapter: ResolvedAdapter, directory: Path, preparer: Preparer) -> PreparedAdapter:
        name = str(adapter.ref)
        try:
            with load_stage("prepare", adapter.ref.source, name) as fields:
                prepared = await preparer.prepare(name, [AdapterPart(str(directory))])
                fields |= {"revision": adapter.revision, "bytes": prepared.bytes}
        except AdapterRefused:
            if directory == self._target(adapter):  # only the copy in the cache, never the source's files
                await asyncio.to_thread(_discard, directory)
            raise
        for warning in prepared.warnings:
            logger.warning("adapter {}: {}", name, warning)
        return msgspec.structs.replace(prepared, name=name)

    async def _prepare_in_place(
        self, adapter: ResolvedAdapter, token: str | None, directory: Path, preparer: Preparer
    ) -> PreparedAdapter:
        """Prepare the source's files in place. Raises Unavailable if they are overwritten meanwhile."""
        try:
            prepared = await self._prepare(adapter, directory, preparer)
        except AdapterRefused as error:
            # While files are being written, they may be missing, truncated or damaged.
            is_complete = error.code != error_codes.ADAPTER_UNREADABLE or not await self._is_recent(directory)
            if is_complete and not await self._is_changed(adapter, token):
                raise
            raise _changed(f"{adapter.ref} is being written ({error.message}); try again") from None
        if await self._is_changed(adapter, token):
            raise _changed(f"{adapter.ref} changed while it was being loaded; try again")
        return prepared

    async def _is_changed(self, adapter: ResolvedAdapter, token: str | None) -> bool:
        """Whether the source now has a different revision."""
        ref, seconds = adapter.ref, self._limits.resolve_seconds
        try:
            current = await call_source(self._source, ref, token, seconds, lambda: self._source.resolve(ref, token))
        except NotFound:
            if ref.revision is None:
                raise
            return True
        return current.revision != adapter.revision

    async def _is_recent(self, directory: Path) -> bool:
        """Whether one of the files in `directory` was written within the last `writing_seconds`."""
        try:
            async with asyncio.timeout(self._limits.writing_seconds):
                written = await self._files.run(directory, lambda: _last_write(directory))
        except (OSError, TimeoutError):
            return False
        return abs(time.time() - written) < self._limits.writing_seconds

    def _target(self, adapter: ResolvedAdapter) -> Path:
        """The directory for the adapter's files in the cache; it need not exist."""
        return copy_directory(self._cache, adapter.ref, adapter.revision)

    async def _directory(self, adapter: ResolvedAdapter, token: str | None) -> Path:
        """The directory of the adapter's files: in the cache, or the source's."""
        target = self._target(adapter)
        if target.is_dir():
            with suppress(OSError):
                os.utime(target)  # marks it as in use, see disk_cache.py
            return target
        try:
            async with self._fetching.acquire():
                return await self._fetch(adapter, token, target)
        except OSError as error:
            if is_disk_full(error):
                raise cache_full_error() from error
            raise MotetError(f"the adapter cache cannot be written: {error.strerror}") from error

    async def _fetch(self, adapter: ResolvedAdapter, token: str | None, target: Path) -> Path:
        scratch = await asyncio.to_thread(_scratch, target)
        try:
            with load_stage("fetch", adapter.ref.source, str(adapter.ref)) as fields:
                directory = await call_source(
                    self._source,
                    adapter.ref,
                    token,
                    self._limits.fetch_seconds,
                    lambda: watched(
                        str(adapter.ref), self._source.fetch(adapter, token, scratch), scratch, self._limits
                    ),
                )
                check_result(self._source, "fetch", directory, Path)
                fields |= {
                    "revision": adapter.revision,
                    "bytes": await self._files.run(directory, lambda: _size(directory)),
                }
            if not directory.is_relative_to(scratch):
                return directory
            return await asyncio.to_thread(_move, directory, target)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


class AdapterLoads:
    """The loads of all sources. Concurrent requests for an adapter share one load, which outlives their time-outs."""

    def __init__(
        self, sources: Mapping[str, AdapterSource], preparer: Preparer, cache: Path, limits: LoadLimits
    ) -> None:
        for source in sources.values():
            source.max_adapter_bytes = limits.largest_adapter
        self._sources = {name: SourceLoads(source, cache, limits) for name, source in sources.items()}
        self._preparer = preparer

    async def get(self, adapter: ResolvedAdapter, token: str | None, owner: str = "") -> Loaded:
        """The loaded `adapter`, of a known source. Raises MotetError; Overloaded if there are too many loads."""
        loads = self._sources[adapter.ref.source]
        key = (adapter.ref.id, adapter.revision)
        while (loaded := loads.outcomes.known(key)) is None:
            is_running = key in loads.running
            if not is_running:
                loads.check_share(owner)
            try:
                return await loads.running.run(key, lambda: loads.load_for(owner, adapter, token, self._preparer))
            except TOKEN_ERRORS:
                if not is_running:
                    raise
                # The load failed with another caller's token: try again with this one.
        return loaded

    async def close(self) -> None:
        """Cancel all loads."""
        for loads in self._sources.values():
            await loads.running.close()


def _changed(message: str) -> Unavailable:
    return Unavailable(message, param="model", code=error_codes.ADAPTER_CHANGED)


def _last_write(directory: Path) -> float:
    """When one of the files in `directory` was last written; seconds since the epoch."""
    return max((path.stat().st_mtime for path in directory.iterdir()), default=0.0)


def _scratch(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def _move(directory: Path, target: Path) -> Path:
    """Rename `directory` to `target`, unless another process has already created the same `target`."""
    sync_directory(directory)
    try:
        directory.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    return target


def _size(directory: Path) -> int:
    """The total size of the readable files in `directory`, in bytes."""
    with suppress(OSError), os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())
    return 0


def _discard(copy: Path) -> None:
    """Remove a copy from the cache, atomically for other processes."""
    scratch = _scratch(copy)
    try:
        copy.rename(scratch / copy.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
