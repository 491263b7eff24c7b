"""What a request's `model` means: the base, or one adapter of one source. Asks sources for listings only.

""  base-name            the base model
source:id[@revision]     an adapter of that source
alias                    an adapter that a source lists under that short name
org/name[@revision]      an adapter of the default source
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from motet.api.adapters.listing import SIMILAR, Listings
from motet.core import error_codes
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource
from motet.core.deployment import Deployment
from motet.core.errors import InvalidRequest, MotetError, NotFound, StartupError, from_info
from motet.core.excerpt import shortened
from motet.core.paths import cache_directory

MAX_NAME = 512

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


def name_rules(deployment: Deployment) -> NameRules:
    """What names mean on the server that `deployment` describes."""
    settings = deployment.settings
    aliases = (*settings.model_alias, *deployment.model_aliases)
    return NameRules(deployment.model_name, settings.default_source, cache_directory(), aliases)


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
        self._listings = Listings(sources, rules.is_base)

    async def close(self) -> None:
        """Give up a listing that is being made."""
        await self._listings.close()

    async def find(self, model: str, source: str | None) -> AdapterRef:
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
        meant = await self._meant(model)
        raise NotFound(
            f"The model {shortened(model)!r} does not exist{meant}: the base model is {self._rules.base_name!r}, and "
            f"adapters are named {known}, or by an alias that GET /v1/models lists",
            param="model",
        )

    async def listing(self) -> list[AdapterListing]:
        """Every adapter that can be named up front, by canonical id; aliases only where they are one's own."""
        return await self._listings.entries()

    async def with_suggestion(self, ref: AdapterRef, error: NotFound) -> MotetError:
        """`error`, about `ref`, with the listed adapter that was probably meant. Listings are for every caller."""
        meant = await self._listings.similar(ref.id)
        if meant is None or meant == str(ref) or "did you mean" in error.message:
            return error
        info = error.info()
        return from_info(msgspec.structs.replace(info, message=f"{info.message} (did you mean {meant}?)"))

    async def _meant(self, model: str) -> str:
        bases = (self._rules.base_name, *self._rules.base_aliases)
        near = difflib.get_close_matches(model, bases, n=1, cutoff=SIMILAR)
        meant = near[0] if near else await self._listings.similar(model)
        return f" (did you mean {meant}?)" if meant else ""

    def _known(self, source: str) -> str:
        if source not in self._sources:
            raise InvalidRequest(
                f"there is no adapter source {shortened(source)!r}; there are {', '.join(sorted(self._sources))}",
                param="adapter_source",
            )
        return source

    async def _by_alias(self, alias: str) -> AdapterRef | None:
        found = (await self._listings.aliases()).get(alias, [])
        if len(found) > 1:
            raise InvalidRequest(
                f"the alias {alias!r} is ambiguous: say {' or '.join(sorted(map(str, found)))}",
                param="model",
                code=error_codes.AMBIGUOUS_MODEL,
            )
        return found[0] if found else None


def _check(model: str) -> None:
    """Raise NotFound for names that must not reach a source."""
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
