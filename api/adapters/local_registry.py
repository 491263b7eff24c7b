"""The adapter registry: finds, authorises, fetches and prepares adapters. There is one per server.

    name ──> AdapterRef ──resolve──> authorised ──load──> fetched, prepared ──(several)──> merged

The adapter's source authorises every caller (authorisations.py); all callers share the loaded adapter.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from loguru import logger

from motet.api.adapters.authorisations import Authorisations, Grant, PublicRecords
from motet.api.adapters.disk_cache import DiskCache, Loaded
from motet.api.adapters.limits import LoadLimits, largest_adapter
from motet.api.adapters.listing import log_inventory
from motet.api.adapters.loading import AdapterLoads, Loader, Preparer
from motet.api.adapters.merging import AdapterMerges
from motet.api.adapters.names import AdapterNames, NameRules, name_rules
from motet.api.adapters.registry import AdapterRegistry, ServedAdapter
from motet.api.adapters.shared_work import TOKEN_ERRORS
from motet.core import error_codes
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.deployment import Deployment
from motet.core.errors import InvalidRequest, MotetError, NotFound, Overloaded, Unavailable, from_info
from motet.core.messages import MAX_PARTS
from motet.core.plugin_registry import PluginRegistry
from motet.engine.client.loader_client import LoaderClient


class Generations:
    """The latest loaded generation of each of the `limit` most recent references. Does not authorise."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loaded: OrderedDict[AdapterRef, tuple[Loaded, bool]] = OrderedDict()

    def store(self, ref: AdapterRef, loaded: Loaded) -> None:
        """Store the latest generation of `ref`."""
        self._loaded[ref] = (loaded, False)
        self._loaded.move_to_end(ref)
        if len(self._loaded) > self._limit:
            self._loaded.popitem(last=False)

    def earlier(self, ref: AdapterRef, error: MotetError) -> Loaded:
        """The last generation of `ref` that loaded; the current one failed with `error`. Raises `error` without one."""
        loaded, logged = self._loaded.get(ref, (None, False))
        if loaded is None or not loaded.intact():
            raise error
        if not logged:
            logger.warning("{}: cannot load the new generation; serving the earlier one: {}", ref, error.message)
            self._loaded[ref] = (loaded, True)
        return loaded


class LocalRegistry(AdapterRegistry):
    """The registry in this process. `AdapterRegistry` documents the methods and their errors."""

    def __init__(
        self,
        sources: Mapping[str, AdapterSource],
        loader: Loader,
        names: NameRules,
        limits: LoadLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or LoadLimits()
        self._rules = names
        self._names = AdapterNames(sources, names)
        preparer = Preparer(loader, self._limits)
        self._loads = AdapterLoads(sources, preparer, names.cache / "adapters", self._limits)
        self._generations = Generations(self._limits.remembered)
        self._merges = AdapterMerges(preparer, self._limits)
        self._cache = DiskCache(names.cache, self._limits.cache_bytes)
        self._cache.make_room()  # earlier servers may have left too much
        self._records = PublicRecords(names.cache)
        self._authorisations = {
            name: Authorisations(source, self._limits, self._records, clock) for name, source in sources.items()
        }

    async def find(self, model: str, source: str | None) -> AdapterRef | None:
        """As `AdapterRegistry.find`."""
        return None if self._rules.is_base(model, source) else await self._names.find(model, source)

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """As `AdapterRegistry.resolve`."""
        return (await self._authorise(ref, token or None)).resolved

    async def serve(self, ref: AdapterRef, token: str | None, owner: str = "") -> ServedAdapter:
        """As `AdapterRegistry.serve`."""
        loaded = await self._load(ref, token, owner)
        return ServedAdapter(ref, loaded.directory, loaded.prepared)

    async def serve_merged(
        self, parts: Sequence[tuple[AdapterRef, float]], tokens: Sequence[str | None], owner: str = ""
    ) -> ServedAdapter:
        """As `AdapterRegistry.serve_merged`."""
        if not 1 <= len(parts) <= MAX_PARTS:
            raise InvalidRequest(
                f"cannot merge {len(parts)} adapters; expected 1 to {MAX_PARTS}", param="merged_adapters"
            )
        refs, weights = zip(*parts, strict=True)
        if not all(map(math.isfinite, weights)):
            raise InvalidRequest("every weight must be a finite number", param="merged_adapters")
        loads = (self._load(ref, token, owner) for ref, token in zip(refs, tokens, strict=True))
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        loaded = [_loaded(ref, outcome) for ref, outcome in zip(refs, outcomes, strict=True)]
        merged = await self._merges.get(list(zip(loaded, weights, strict=True)), owner)
        self._cache.use(merged)
        return ServedAdapter(refs[0], merged.directory, merged.prepared)

    async def listing(self) -> Sequence[AdapterListing]:
        """As `AdapterRegistry.listing`."""
        return await self._names.listing()

    async def close(self) -> None:
        """Cancel all look-ups and loads."""
        for authorisations in self._authorisations.values():
            await authorisations.close()
        await self._names.close()
        await self._loads.close()
        await self._merges.close()
        await asyncio.to_thread(self._cache.close)

    async def _load(self, ref: AdapterRef, token: str | None, owner: str) -> Loaded:
        token = token or None
        authorisations = self._authorisations[ref.source]
        grant = await self._authorise(ref, token)
        try:
            loaded = await self._loads.get(grant.resolved, token, owner)
        except TOKEN_ERRORS:
            authorisations.revoke(ref, token)
            raise
        except (Unavailable, Overloaded) as error:
            if error.code == error_codes.STORAGE_FULL:
                self._cache.make_room()
            return self._generations.earlier(ref, error)
        self._generations.store(ref, loaded)
        self._cache.use(loaded)
        if grant.public and loaded.copied and not self._records.is_recorded(ref, grant.resolved.revision):
            await asyncio.to_thread(self._records.record, ref, grant.resolved.revision)
        return loaded

    async def _authorise(self, ref: AdapterRef, token: str | None) -> Grant:
        try:
            return await self._authorisations[ref.source].authorise(ref, token)
        except NotFound as error:
            raise await self._names.with_suggestion(ref, error) from None


def _loaded(ref: AdapterRef, outcome: Loaded | BaseException) -> Loaded:
    """The loaded part. Raises its failure with `ref` in the message."""
    if isinstance(outcome, MotetError):
        info = outcome.info()
        message = info.message if str(ref) in info.message else f"{ref}: {info.message}"
        raise from_info(msgspec.structs.replace(info, message=message, param="merged_adapters"))
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@asynccontextmanager
async def open_local_registry(deployment: Deployment, plugins: PluginRegistry) -> AsyncIterator[LocalRegistry]:
    """A registry in this process, connected to the loader. Raises StartupError for an invalid setting."""
    loader = LoaderClient(deployment.loader_address)
    settings = deployment.settings
    limits = LoadLimits(
        authorisation_seconds=settings.authorisation_seconds,
        stale_seconds=settings.stale_authorisation_seconds,
        largest_adapter=largest_adapter(Path(deployment.model_directory), settings.max_adapter_rank),
        cache_bytes=settings.size("cache_size"),
    )
    registry = LocalRegistry(plugins.adapter_sources.items, loader, name_rules(deployment), limits)
    await loader.start()
    inventory = asyncio.create_task(log_inventory(plugins.adapter_sources.items, loader))
    try:
        yield registry
    finally:
        inventory.cancel()
        await asyncio.gather(inventory, return_exceptions=True)
        await registry.close()
        await loader.close()
