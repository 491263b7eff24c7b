"""What a request's `model` means: the base, or one adapter of one source. Asks sources for listings only.

""  base-name            the base model
source:id[@revision]     an adapter of that source
alias                    an adapter that a source lists under that short name
org/name[@revision]      an adapter of the default source
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from loguru import logger

from motet.api.adapters.single_flight import SingleFlight
from motet.api.echo import shortened
from motet.core.adapters import AdapterListing, AdapterRef, AdapterSource
from motet.core.errors import InvalidRequest, NotFound, StartupError

MAX_NAME = 512
LISTING_SECONDS = 2.0  # how old a listing may be
LISTING_TIMEOUT = 5.0

_HUB_LIKE = re.compile(r"[\w.-]+/[\w.-]+(@.+)?", re.ASCII)


class NameRules(msgspec.Struct, frozen=True):
    """What names mean here: the base model's, and the source of `org/name`. `cache` is Motet's cache directory."""

    base_name: str
    default_source: str
    cache: Path
    base_aliases: tuple[str, ...] = ()

    def is_base(self, model: str, source: str | None = None) -> bool:
        """Whether `model` is the base, by a name of its own or by none; with `source`, a name is that source's id."""
        return model == "" or (source is None and (model == self.base_name or model in self.base_aliases))


class AdapterNames:
    """Turns names into references, and lists what can be named."""

    def __init__(self, sources: Mapping[str, AdapterSource], rules: NameRules) -> None:
        if rules.default_source not in sources:
            raise StartupError(
                f"--default-source: there is no adapter source {rules.default_source!r}; "
                f"there are {', '.join(sorted(sources))}",
                param="default_source",
            )
        self._sources = sources
        self._rules = rules
        self._listings: dict[str, Sequence[AdapterListing]] = {}
        self._listed_at = -LISTING_SECONDS
        self._refresh: SingleFlight[None, None] = SingleFlight(limit=1)

    async def name(self, model: str, source: str | None) -> AdapterRef:
        """The adapter that `model` names, which is not the base; with `source`, `model` is that source's id.

        Raises InvalidRequest for an unknown `source` or an ambiguous alias, NotFound for what can be none.
        """
        _check(model)
        if source is not None:
            return AdapterRef(self._known(source), model)
        prefix, colon, rest = model.partition(":")
        if colon and prefix in self._sources:
            return _reference(prefix, rest, model)
        if (named := await self._by_alias(model)) is not None:
            return named
        if _HUB_LIKE.fullmatch(model):
            return _reference(self._rules.default_source, model, model)
        known = ", ".join(f"{name}:…" for name in sorted(self._sources))
        raise NotFound(
            f"The model {shortened(model)!r} does not exist: the base model is {self._rules.base_name!r}, and adapters "
            f"are named {known}, or by an alias that GET /v1/models lists",
            param="model",
        )

    async def listing(self) -> list[AdapterListing]:
        """Every adapter that can be named up front, by canonical id; aliases only where they are one's own."""
        aliases = await self._aliases()
        found = [listing for listings in self._listings.values() for listing in listings]
        usable = (x if x.alias and len(aliases.get(x.alias, ())) == 1 else AdapterListing(x.ref) for x in found)
        return sorted(usable, key=lambda listing: str(listing.ref))

    def _known(self, source: str) -> str:
        if source not in self._sources:
            raise InvalidRequest(
                f"there is no adapter source {shortened(source)!r}; there are {', '.join(sorted(self._sources))}",
                param="adapter_source",
            )
        return source

    async def _by_alias(self, alias: str) -> AdapterRef | None:
        found = (await self._aliases()).get(alias, [])
        if len(found) > 1:
            raise InvalidRequest(
                f"the alias {alias!r} is ambiguous: say {' or '.join(sorted(map(str, found)))}",
                param="model",
                code="ambiguous_model",
            )
        return found[0] if found else None

    async def _aliases(self) -> dict[str, list[AdapterRef]]:
        """Alias: what the sources list under it, after asking them again if their last answer is too old."""
        if time.monotonic() - self._listed_at >= LISTING_SECONDS:
            await self._refresh.run(None, self._list)
        aliases: dict[str, list[AdapterRef]] = {}
        for listings in self._listings.values():
            for listing in listings:
                if listing.alias and not self._rules.is_base(listing.alias):
                    aliases.setdefault(listing.alias, []).append(listing.ref)
        return aliases

    async def _list(self) -> None:
        await asyncio.gather(*map(self._list_one, self._sources))
        self._listed_at = time.monotonic()

    async def _list_one(self, source: str) -> None:
        try:
            async with asyncio.timeout(LISTING_TIMEOUT):
                found = await self._sources[source].listing()
            # No source speaks for another.
            self._listings[source] = tuple(listing for listing in found if listing.ref.source == source)
        except Exception as error:
            # Its last listing stays: one source's trouble must not make the others' adapters unknown.
            logger.warning("adapter source {} cannot be listed: {}", source, type(error).__name__)


def _check(model: str) -> None:
    """Raise NotFound for what no source may be asked for."""
    if len(model) > MAX_NAME:
        raise NotFound(f"the model's name has {len(model)} characters; {MAX_NAME} are allowed", param="model")
    if not model.isprintable():
        raise NotFound("the model's name has characters that cannot be printed", param="model")
    if ".." in re.split(r"[/:@]", model):
        raise NotFound("the model's name has '..' as a part of its path", param="model")


def _reference(source: str, text: str, model: str) -> AdapterRef:
    """`id` or `id@revision` at `source`. Raises NotFound when a part is missing."""
    id, at, revision = text.rpartition("@")
    if not at:
        id, revision = text, ""
    if not id or (at and not revision):
        raise NotFound(
            f"The model {shortened(model)!r} does not exist: write it as source:id or source:id@revision", param="model"
        )
    return AdapterRef(source, id, revision or None)
