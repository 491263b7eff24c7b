"""Resolves a request's `model` to the base model or an adapter. Calls sources only for listings.

""  base-name            the base model
source:id[@revision]     an adapter of that source
alias                    an adapter that a source lists with this alias
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
    """How to interpret names. `default_source` is the source of `org/name`; `cache` is Motet's cache directory."""

    base_name: str
    default_source: str
    cache: Path
    base_aliases: tuple[str, ...] = ()

    def is_base(self, model: str, source: str | None = None) -> bool:
        """Whether `model` is empty or names the base model. With `source`, a non-empty name is its id."""
        return model == "" or (source is None and (model == self.base_name or model in self.base_aliases))


def name_rules(deployment: Deployment) -> NameRules:
    """The rules for the server that `deployment` describes."""
    settings = deployment.settings
    aliases = (*settings.model_alias, *deployment.model_aliases)
    return NameRules(deployment.model_name, settings.default_source, cache_directory(), aliases)


class AdapterNames:
    """Turns names into references, and lists adapters."""

    def __init__(self, sources: Mapping[str, AdapterSource], rules: NameRules) -> None:
        if rules.default_source not in sources:
            raise StartupError(
                f"--default-source: unknown adapter source {rules.default_source!r}; "
                f"available: {', '.join(sorted(sources))}",
                param="default_source",
            )
        self._sources = sources
        self._rules = rules
        self._listings = Listings(sources, rules.is_base)

    async def close(self) -> None:
        """Cancel a running listing."""
        await self._listings.close()

    async def find(self, model: str, source: str | None) -> AdapterRef:
        """The adapter called `model`, not the base model; with `source`, `model` is an id of that source.

        Raises InvalidRequest for an unknown `source` or an ambiguous alias, NotFound for other names.
        """
        _check(model)
        if source is not None:
            return AdapterRef(self._checked_source(source), model)
        prefix, colon, rest = model.partition(":")
        if colon and prefix in self._sources:
            return _reference(prefix, rest, model)
        if (ref := await self._by_alias(model)) is not None:
            return ref
        if _HUB_LIKE.fullmatch(model):
            return _reference(self._rules.default_source, model, model)
        prefixes = ", ".join(f"{name}:…" for name in sorted(self._sources))
        suggestion = await self._suggestion(model)
        raise NotFound(
            f"The model {shortened(model)!r} does not exist{suggestion}: the base model is {self._rules.base_name!r}; "
            f"adapters are named {prefixes}, or by an alias in GET /v1/models",
            param="model",
        )

    async def listing(self) -> list[AdapterListing]:
        """All listed adapters, sorted by canonical id; with their aliases only if unique."""
        return await self._listings.entries()

    async def with_suggestion(self, ref: AdapterRef, error: NotFound) -> MotetError:
        """`error`, about `ref`, with a suggestion: a listed adapter with a similar name. Listings are public."""
        similar = await self._listings.similar(ref.id)
        if similar is None or similar == str(ref) or "did you mean" in error.message:
            return error
        info = error.info()
        return from_info(msgspec.structs.replace(info, message=f"{info.message} (did you mean {similar}?)"))

    async def _suggestion(self, model: str) -> str:
        bases = (self._rules.base_name, *self._rules.base_aliases)
        close = difflib.get_close_matches(model, bases, n=1, cutoff=SIMILAR)
        similar = close[0] if close else await self._listings.similar(model)
        return f" (did you mean {similar}?)" if similar else ""

    def _checked_source(self, source: str) -> str:
        if source not in self._sources:
            raise InvalidRequest(
                f"unknown adapter source {shortened(source)!r}; available: {', '.join(sorted(self._sources))}",
                param="adapter_source",
            )
        return source

    async def _by_alias(self, alias: str) -> AdapterRef | None:
        refs = (await self._listings.aliases()).get(alias, [])
        if len(refs) > 1:
            raise InvalidRequest(
                f"the alias {alias!r} is ambiguous; use {' or '.join(sorted(map(str, refs)))}",
                param="model",
                code=error_codes.AMBIGUOUS_MODEL,
            )
        return refs[0] if refs else None


def _check(model: str) -> None:
    """Raise NotFound for names that must not be passed to a source."""
    if len(model) > MAX_NAME:
        raise NotFound(f"the model name has {len(model)} characters; the maximum is {MAX_NAME}", param="model")
    if not model.isprintable():
        raise NotFound("the model name contains non-printable characters", param="model")
    if ".." in re.split(r"[/:@]", model):
        raise NotFound("the model name contains '..' as a path component", param="model")


def _reference(source: str, text: str, model: str) -> AdapterRef:
    """The reference `id` or `id@revision` at `source`. Raises NotFound if a part is missing."""
    id, at, revision = text.rpartition("@")
    if not at:
        id, revision = text, ""
    if not id or (at and not revision):
        raise NotFound(
            f"The model {shortened(model)!r} does not exist: write it as source:id or source:id@revision", param="model"
        )
    return AdapterRef(source, id, revision or None)
