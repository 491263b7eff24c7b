"""Adapters as the routes see them: a name in, an adapter out that the engine knows.

The registry behind it may be in this process or in one of its own: it is asked in messages either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from motet.api.adapters.messages import ListAdapters, Name, Question, Resolve, Serve, ServedAdapter, ServeMerged
from motet.api.adapters.names import NameRules
from motet.core.adapters import AdapterListing, AdapterRef, ResolvedAdapter
from motet.core.messages import PreparedAdapter

T = TypeVar("T")


class Engine(Protocol):
    """What is needed of the engine's client."""

    async def register(self, adapter: PreparedAdapter) -> None:
        """Make `adapter` known to the engine; idempotent."""


class Registry(Protocol):
    """What answers: an AdapterRegistry in this process, or the client of another process's."""

    async def ask(self, question: Question[T]) -> T:
        """The answer. Raises MotetError."""


class Adapters:
    """One API process's adapters. Every method raises Unavailable when the registry goes away."""

    def __init__(self, registry: Registry, engine: Engine, names: NameRules) -> None:
        self._registry = registry
        self._engine = engine
        self._names = names

    async def name(self, model: str, source: str | None) -> AdapterRef | None:
        """The adapter that `model` names, None for the base model; `source` is the body's adapter_source.

        Raises NotFound for what can never be an adapter, InvalidRequest for an unknown source and for an
        alias that two sources claim. Reaches out to nobody, but for listings.
        """
        if self._names.is_base(model, source):
            return None  # whatever may have become of the registry
        return await self._registry.ask(Name(model, source))

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """What `ref` is right now, if `token` may use it; nothing is loaded. Raises as `serve` does."""
        return await self._registry.ask(Resolve(ref, token))

    async def serve(self, ref: AdapterRef, token: str | None, owner: str = "") -> ServedAdapter:
        """`ref`, authorised for `token`, loaded as one of `owner`'s, and known to the engine.

        Raises NotFound, Unauthenticated, Forbidden, AdapterRefused, Overloaded or Unavailable; a load that
        failed for another reason than the caller's token is not tried again for some seconds.
        """
        return await self._known(await self._registry.ask(Serve(ref, token, owner)))

    async def serve_merged(
        self, parts: Sequence[tuple[AdapterRef, float]], tokens: Sequence[str | None], owner: str = ""
    ) -> ServedAdapter:
        """The weighted sum of `parts`, each authorised for its own token, loaded, and known to the engine.

        Raises as `serve` does for the first part that fails, naming it; InvalidRequest for no parts, more than
        MAX_PARTS, or a weight that is no finite number; AdapterRefused if the ranks come to too much; Overloaded
        when `owner` has had too many new merges made.
        """
        return await self._known(await self._registry.ask(ServeMerged(tuple(parts), tuple(tokens), owner)))

    async def listing(self) -> Sequence[AdapterListing]:
        """The adapters that can be named up front, sorted by canonical id, with their unambiguous aliases."""
        return await self._registry.ask(ListAdapters())

    async def _known(self, served: ServedAdapter) -> ServedAdapter:
        await self._engine.register(served.prepared)
        return served
