"""The API's view of adapters: a name in, a served adapter out.

    name ──> AdapterRef ──resolve──> authorised ──load──> fetched, prepared ──register──> known to the engine

Every caller is authorised by the adapter's source, each time; what was loaded for one is shared by all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from motet.api.adapter_loads import AdapterLoads, Loader, LoadLimits
from motet.api.adapter_names import AdapterNames, NameRules
from motet.api.single_flight import SingleFlight
from motet.api.source_calls import call_source
from motet.core.adapters import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.messages import PreparedAdapter

MAX_RESOLVING = 256  # of one source at a time


class Engine(Protocol):
    """What is needed of the engine's client."""

    async def register(self, adapter: PreparedAdapter) -> None:
        """Make `adapter` known to the engine; idempotent."""


class ServedAdapter(msgspec.Struct, frozen=True):
    """An adapter that the engine knows: what was asked for, its files, and what the loader made of them."""

    ref: AdapterRef
    directory: Path
    prepared: PreparedAdapter


class AdapterRegistry:
    """Everything between a request's `model` and an adapter in the engine. One for each API process."""

    def __init__(
        self,
        sources: Mapping[str, AdapterSource],
        engine: Engine,
        loader: Loader,
        names: NameRules,
        limits: LoadLimits | None = None,
    ) -> None:
        self._sources = sources
        self._engine = engine
        self._limits = limits or LoadLimits()
        self._names = AdapterNames(sources, names)
        self._loads = AdapterLoads(sources, loader, names.cache / "adapters", self._limits)
        # Identical questions share an answer only while it is on its way: a token that was just revoked
        # fails the next request.
        self._resolving: dict[str, SingleFlight[tuple[AdapterRef, str | None], ResolvedAdapter]] = {
            name: SingleFlight(MAX_RESOLVING) for name in sources
        }

    async def name(self, model: str, source: str | None) -> AdapterRef | None:
        """The adapter that `model` names, None for the base model; `source` is the body's adapter_source.

        Raises NotFound for what can never be an adapter, InvalidRequest for an unknown source and for an
        alias that two sources claim. Reaches out to nobody, but for listings.
        """
        return await self._names.name(model, source)

    async def serve(self, ref: AdapterRef, token: str | None) -> ServedAdapter:
        """`ref`, authorised for `token`, loaded, and known to the engine.

        Raises NotFound, Unauthenticated, Forbidden, AdapterRefused, Overloaded or Unavailable; a load that
        failed for another reason than the caller's token is not tried again for some seconds.
        """
        resolved = await self.resolve(ref, token)
        loaded = await self._loads.get(resolved, token or None)
        await self._engine.register(loaded.prepared)
        return ServedAdapter(ref, loaded.directory, loaded.prepared)

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """What `ref` is right now, if `token` may use it; nothing is loaded. Raises as `serve` does."""
        token = token or None
        return await self._resolving[ref.source].run((ref, token), lambda: self._resolve(ref, token))

    async def listing(self) -> list[AdapterListing]:
        """The adapters that can be named up front, sorted by canonical id, with their unambiguous aliases."""
        return await self._names.listing()

    async def close(self) -> None:
        """Give up every look-up and every load."""
        for resolving in self._resolving.values():
            await resolving.close()
        await self._loads.close()

    async def _resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        source = self._sources[ref.source]
        found = await call_source(ref, token, self._limits.resolve_seconds, lambda: source.resolve(ref, token))
        return ResolvedAdapter(ref, found.revision)  # a source has no say in what was asked of it
