"""The adapter registry: what a name means, who may use it, and its files, fetched and prepared. One for each server.

    name ──> AdapterRef ──resolve──> authorised ──load──> fetched, prepared ──(several)──> merged

Every caller is authorised by the adapter's source (authorisations.py); what was loaded for one is shared by all.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from motet.api.adapters.authorisations import Authorisations, Grant
from motet.api.adapters.disk_cache import DiskCache
from motet.api.adapters.generations import Generations
from motet.api.adapters.loads import AdapterLoads
from motet.api.adapters.merges import AdapterMerges
from motet.api.adapters.messages import ListAdapters, Name, Question, Resolve, Serve, ServedAdapter, ServeMerged
from motet.api.adapters.names import AdapterNames, NameRules
from motet.api.adapters.outcomes import OF_THE_CALLER, Loaded, LoadLimits
from motet.api.adapters.preparer import Loader, Preparer
from motet.api.adapters.public_records import PublicRecords
from motet.core import error_codes
from motet.core.adapters import AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import InvalidRequest, MotetError, NotFound, Overloaded, Unavailable, from_info
from motet.core.messages import MAX_PARTS

T = TypeVar("T")


class AdapterRegistry:
    """Everything between a request's `model` and a prepared adapter; `api/adapters/adapters.py` says what is raised."""

    def __init__(
        self,
        sources: Mapping[str, AdapterSource],
        loader: Loader,
        names: NameRules,
        limits: LoadLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or LoadLimits()
        self._names = AdapterNames(sources, names)
        preparer = Preparer(loader, self._limits)
        self._loads = AdapterLoads(sources, preparer, names.cache / "adapters", self._limits)
        self._generations = Generations(self._limits.remembered)
        self._merges = AdapterMerges(preparer, self._limits)
        self._cache = DiskCache(names.cache, self._limits.cache_bytes)
        self._cache.make_room()  # of what earlier servers left
        self._records = PublicRecords(names.cache)
        self._authorisations = {
            name: Authorisations(source, self._limits, self._records, clock) for name, source in sources.items()
        }

    async def ask(self, question: Question[T]) -> T:
        """The answer to `question`. Raises MotetError."""
        return cast(T, await self._answer(question))

    async def close(self) -> None:
        """Give up every look-up and every load."""
        for authorisations in self._authorisations.values():
            await authorisations.close()
        await self._names.close()
        await self._loads.close()
        await self._merges.close()
        await asyncio.to_thread(self._cache.close)

    def _answer(self, question: Question[T]) -> Awaitable[Any]:
        match question:
            case Name():
                return self._names.name(question.model, question.source)
            case Resolve():
                return self._resolve(question.ref, question.token)
            case Serve():
                return self._serve(question)
            case ServeMerged():
                return self._serve_merged(question)
            case ListAdapters():
                return self._names.listing()
        raise TypeError(question)

    async def _serve(self, question: Serve) -> ServedAdapter:
        loaded = await self._load(question.ref, question.token, question.owner)
        return ServedAdapter(question.ref, loaded.directory, loaded.prepared)

    async def _serve_merged(self, question: ServeMerged) -> ServedAdapter:
        if not 1 <= len(question.parts) <= MAX_PARTS:
            raise InvalidRequest(
                f"{len(question.parts)} adapters cannot be merged; give 1 to {MAX_PARTS}", param="merged_adapters"
            )
        refs, weights = zip(*question.parts, strict=True)
        if not all(map(math.isfinite, weights)):
            raise InvalidRequest("every weight must be a finite number", param="merged_adapters")
        owner = question.owner
        loads = (self._load(ref, token, owner) for ref, token in zip(refs, question.tokens, strict=True))
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        parts = [_loaded(ref, outcome) for ref, outcome in zip(refs, outcomes, strict=True)]
        merged = await self._merges.get(list(zip(parts, weights, strict=True)), question.owner)
        self._cache.use(merged)
        return ServedAdapter(refs[0], merged.directory, merged.prepared)

    async def _load(self, ref: AdapterRef, token: str | None, owner: str) -> Loaded:
        token = token or None
        authorisations = self._authorisations[ref.source]
        grant = await self._authorise(ref, token)
        try:
            loaded = await self._loads.get(grant.resolved, token, owner)
        except OF_THE_CALLER:
            authorisations.end(ref, token)
            raise
        except (Unavailable, Overloaded) as error:
            if error.code == error_codes.STORAGE_FULL:
                self._cache.make_room()
            return self._generations.earlier(ref, error)
        self._generations.loaded(ref, loaded)
        self._cache.use(loaded)
        if grant.public and loaded.copied and not self._records.is_noted(ref, grant.resolved.revision):
            await asyncio.to_thread(self._records.note, ref, grant.resolved.revision)
        return loaded

    async def _resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        return (await self._authorise(ref, token or None)).resolved

    async def _authorise(self, ref: AdapterRef, token: str | None) -> Grant:
        try:
            return await self._authorisations[ref.source].authorise(ref, token)
        except NotFound as error:
            raise await self._names.with_suggestion(ref, error) from None


def _loaded(ref: AdapterRef, outcome: Loaded | BaseException) -> Loaded:
    """A part's load, or its failure with the part's name."""
    if isinstance(outcome, MotetError):
        info = outcome.info()
        message = info.message if str(ref) in info.message else f"{ref}: {info.message}"
        raise from_info(msgspec.structs.replace(info, message=message, param="merged_adapters"))
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
