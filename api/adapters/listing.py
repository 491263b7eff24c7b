"""Lists the adapters of all sources: caches listings, finds similar names, and checks configs at startup."""

from __future__ import annotations

import asyncio
import difflib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from loguru import logger

from motet.api.adapters.shared_work import SingleFlight
from motet.api.adapters.source_calls import class_name, presentable
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource
from motet.core.errors import AdapterRefused, MotetError

LISTING_SECONDS = 2.0
"""The maximum age of a listing; ten times the time that the listing took, if that is longer."""

LISTING_TIMEOUT = 5.0
LISTING_WAIT = 0.5
"""How long a request waits for a new listing if there is an older one."""

SIMILAR = 0.7
"""The minimum similarity (difflib's ratio, 0 to 1) of a suggested name."""

MAX_COMPARED = 1000


class Listings:
    """The latest listing of each source. If a source is slow or fails, its last listing stays valid."""

    def __init__(self, sources: Mapping[str, AdapterSource], is_base: Callable[[str], bool]) -> None:
        self._sources, self._is_base = sources, is_base
        self._listed: dict[str, tuple[AdapterListing, ...]] = {}
        self._aliases: dict[str, list[AdapterRef]] = {}
        self._problems: dict[str, str] = {}
        self._began, self._due = 0.0, float("-inf")
        self._refresh: SingleFlight[None, None] = SingleFlight(limit=1)

    async def close(self) -> None:
        """Cancel a running refresh."""
        await self._refresh.close()

    async def aliases(self) -> Mapping[str, Sequence[AdapterRef]]:
        """The adapters of each alias: several if sources use the same alias."""
        await self._update()
        return self._aliases

    async def entries(self) -> list[AdapterListing]:
        """Every adapter, sorted by canonical id; with its alias only if that is unique."""
        aliases = await self.aliases()
        all_listings = (listing for listings in self._listed.values() for listing in listings)
        entries = (x if x.alias and len(aliases.get(x.alias, ())) == 1 else AdapterListing(x.ref) for x in all_listings)
        return sorted(entries, key=lambda listing: str(listing.ref))

    async def similar(self, name: str) -> str | None:
        """The alias or id of the listed adapter that is most similar to `name`, usable in a request."""
        names: dict[str, str] = {alias: alias for alias, refs in (await self.aliases()).items() if len(refs) == 1}
        for listings in self._listed.values():
            for listing in listings:
                names.setdefault(listing.ref.id, str(listing.ref))
                names.setdefault(str(listing.ref), str(listing.ref))
        compared = list(names)[:MAX_COMPARED]
        near = [name] if name in names else difflib.get_close_matches(name, compared, n=1, cutoff=SIMILAR)
        return names[near[0]] if near else None

    async def _update(self) -> None:
        """List the sources again if the last listings are too old; wait for slow sources only briefly."""
        now = time.monotonic()
        running = None in self._refresh
        if not running and now < self._due:
            return
        seconds = LISTING_WAIT if self._listed else LISTING_TIMEOUT
        if not running:
            self._began = now
        elif now - self._began > seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._refresh.run(None, self._list)
        except TimeoutError:
            return

    async def _list(self) -> None:
        await asyncio.gather(*map(self._list_one, self._sources))
        took = time.monotonic() - self._began
        self._due = time.monotonic() + max(LISTING_SECONDS, 10 * took)

    async def _list_one(self, source: str) -> None:
        try:
            async with asyncio.timeout(LISTING_TIMEOUT):
                listings = await self._sources[source].listing()
            if not all(isinstance(listing, AdapterListing) for listing in listings):
                raise TypeError("listing must return AdapterListing objects")
        except TimeoutError:
            self._failed(source, f"no listing within {LISTING_TIMEOUT:g} s")
        except Exception as error:
            self._failed(source, f"{type(error).__name__}: {error}")
        else:
            self._problems.pop(source, None)
            # A source may list only its own adapters.
            self._listed[source] = tuple(listing for listing in listings if listing.ref.source == source)
            self._aliases = self._by_alias()

    def _failed(self, source: str, problem: str) -> None:
        """Log the problem once. The source's last listing stays valid."""
        if self._problems.get(source) != problem:
            self._problems[source] = problem
            name = class_name(self._sources[source])
            logger.warning("adapter source {} ({}) cannot be listed: {}", source, name, problem)

    def _by_alias(self) -> dict[str, list[AdapterRef]]:
        aliases: dict[str, list[AdapterRef]] = {}
        for listings in self._listed.values():
            for listing in listings:
                if listing.alias and not self._is_base(listing.alias):
                    aliases.setdefault(listing.alias, []).append(listing.ref)
        return aliases


INVENTORY_SECONDS = 10.0

CHECK_SECONDS = 600.0
"""The time-out of all checks together; the loader may still be starting."""

MAX_CHECKED = 500
"""How many configs are checked per source at most."""

MAX_LOGGED = 50
"""Log lines per source at most."""


class ConfigChecker(Protocol):
    """The part of LoaderClient that is needed here."""

    async def check_config(self, directory: str) -> None:
        """Raise AdapterRefused if the config in `directory` cannot be served."""


async def log_inventory(sources: Mapping[str, AdapterSource], loader: ConfigChecker) -> None:
    """Log how many adapters each source lists and which configs are refused; skips a source that fails."""
    for name, source in sorted(sources.items()):
        try:
            async with asyncio.timeout(INVENTORY_SECONDS):
                listings = await source.listing()
        except Exception as error:  # from a plugin; Listings logs it on first use
            logger.debug("adapter source {} cannot be listed at startup: {}", name, type(error).__name__)
            continue
        logger.bind(source=name, adapters=len(listings)).info("adapters found")
        if not source.local_files:
            continue
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await _log_refused(name, source, listings[:MAX_CHECKED], loader)
        except (MotetError, TimeoutError):
            continue  # the loader is not available


async def _log_refused(
    name: str, source: AdapterSource, listings: Sequence[AdapterListing], loader: ConfigChecker
) -> None:
    refused = 0
    for listing in listings:
        error = await _refusal(source, listing, loader)
        if error is None:
            continue
        refused += 1
        if refused <= MAX_LOGGED:
            message = " ".join(error.message.split())
            line = logger.bind(adapter=str(listing.ref), code=error.code, param=error.param)
            line.warning("adapter cannot be served: {}", message)
    if refused > MAX_LOGGED:
        logger.bind(source=name, adapters=refused - MAX_LOGGED).warning("more adapters cannot be served")


async def _refusal(source: AdapterSource, listing: AdapterListing, loader: ConfigChecker) -> AdapterRefused | None:
    """The refusal of the adapter's config; None if it can be served. Raises Unavailable if the loader exits."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            directory = await source.fetch(await source.resolve(listing.ref, None), None, Path(scratch))
    except AdapterRefused as error:
        return error
    except Exception:  # removed meanwhile, or its files do not respond
        return None
    try:
        await loader.check_config(str(directory))
    except AdapterRefused as error:
        public = presentable(error, str(directory))
        return public if isinstance(public, AdapterRefused) else error
    return None
