"""The adapter registry: what a name means, who may use it, and its files, fetched and prepared. One for each server.

    name ──> AdapterRef ──resolve──> authorised ──load──> fetched, prepared ──(several)──> merged

Every caller is authorised by the adapter's source, each time; what was loaded for one is shared by all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from motet.api.adapters.load_log import load_stage
from motet.api.adapters.loads import AdapterLoads
from motet.api.adapters.merges import AdapterMerges
from motet.api.adapters.messages import ListAdapters, Name, Question, Resolve, Serve, ServedAdapter, ServeMerged
from motet.api.adapters.names import AdapterNames, NameRules
from motet.api.adapters.outcomes import Loaded, LoadLimits
from motet.api.adapters.preparer import Loader, Preparer
from motet.api.adapters.single_flight import SingleFlight
from motet.api.adapters.source_calls import call_source
from motet.core.adapters import AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import InvalidRequest, MotetError, from_info
from motet.core.messages import MAX_PARTS

T = TypeVar("T")

MAX_RESOLVING = 256  # of one source at a time


class AdapterRegistry:
    """Everything between a request's `model` and a prepared adapter; `api/adapters/adapters.py` says what is raised."""

    def __init__(
        self,
        sources: Mapping[str, AdapterSource],
        loader: Loader,
        names: NameRules,
        limits: LoadLimits | None = None,
    ) -> None:
        self._sources = sources
        self._limits = limits or LoadLimits()
        self._names = AdapterNames(sources, names)
        preparer = Preparer(loader, self._limits)
        self._loads = AdapterLoads(sources, preparer, names.cache / "adapters", self._limits)
        self._merges = AdapterMerges(preparer, self._limits)
        # Identical questions share an answer only while it is on its way: a token that was just revoked
        # fails the next request.
        self._resolving: dict[str, SingleFlight[tuple[AdapterRef, str | None], ResolvedAdapter]] = {
            name: SingleFlight(MAX_RESOLVING) for name in sources
        }

    async def ask(self, question: Question[T]) -> T:
        """The answer to `question`. Raises MotetError."""
        return cast(T, await self._answer(question))

    async def close(self) -> None:
        """Give up every look-up and every load."""
        for resolving in self._resolving.values():
            await resolving.close()
        await self._loads.close()
        await self._merges.close()

    def _answer(self, question: Question[T]) -> Awaitable[Any]:
        match question:
            case Name():
                return self._names.name(question.model, question.source)
            case Resolve():
                return self._resolve(question.ref, question.token)
            case Serve():
                return self._serve(question.ref, question.token)
            case ServeMerged():
                return self._serve_merged(question)
            case ListAdapters():
                return self._names.listing()
        raise TypeError(question)

    async def _serve(self, ref: AdapterRef, token: str | None) -> ServedAdapter:
        loaded = await self._load(ref, token)
        return ServedAdapter(ref, loaded.directory, loaded.prepared)

    async def _serve_merged(self, question: ServeMerged) -> ServedAdapter:
        if not 1 <= len(question.parts) <= MAX_PARTS:
            raise InvalidRequest(
                f"{len(question.parts)} adapters cannot be merged; give 1 to {MAX_PARTS}", param="merged_adapters"
            )
        refs, weights = zip(*question.parts, strict=True)
        if not all(map(math.isfinite, weights)):
            raise InvalidRequest("every weight must be a finite number", param="merged_adapters")
        loads = (self._load(ref, token) for ref, token in zip(refs, question.tokens, strict=True))
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        parts = [_loaded(ref, outcome) for ref, outcome in zip(refs, outcomes, strict=True)]
        merged = await self._merges.get(list(zip(parts, weights, strict=True)))
        return ServedAdapter(refs[0], merged.directory, merged.prepared)

    async def _load(self, ref: AdapterRef, token: str | None) -> Loaded:
        return await self._loads.get(await self._resolve(ref, token), token or None)

    async def _resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        token = token or None
        return await self._resolving[ref.source].run((ref, token), lambda: self._ask_source(ref, token))

    async def _ask_source(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        source = self._sources[ref.source]
        with load_stage("resolve", ref.source, str(ref)):
            found = await call_source(ref, token, self._limits.resolve_seconds, lambda: source.resolve(ref, token))
        return ResolvedAdapter(ref, found.revision)  # a source has no say in what was asked of it


def _loaded(ref: AdapterRef, outcome: Loaded | BaseException) -> Loaded:
    """A part's load, or its failure with the part's name."""
    if isinstance(outcome, MotetError):
        info = outcome.info()
        message = info.message if str(ref) in info.message else f"{ref}: {info.message}"
        raise from_info(msgspec.structs.replace(info, message=message, param="merged_adapters"))
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
