"""What adapter sources list: kept for some seconds, with aliases, and searched for names that are nearly right."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Mapping, Sequence

from loguru import logger

from motet.api.adapters.single_flight import SingleFlight
from motet.api.adapters.source_calls import class_name
from motet.core.adapters import AdapterListing, AdapterRef, AdapterSource

LISTING_SECONDS = 2.0
"""How old a listing may be; ten times as long as it took to make, if that is more."""

LISTING_TIMEOUT = 5.0
LISTING_WAIT = 0.5
"""How long a request waits for a newer listing where there is an older one."""

SIMILAR = 0.7
"""How much alike (difflib's ratio, 0 to 1) a name and the one that it was meant for are."""

MAX_COMPARED = 1000


class Listings:
    """The latest listing of each source. A source that is slow or fails keeps its last one."""

    def __init__(self, sources: Mapping[str, AdapterSource], is_base: Callable[[str], bool]) -> None:
        self._sources, self._is_base = sources, is_base
        self._listed: dict[str, tuple[AdapterListing, ...]] = {}
        self._aliases: dict[str, list[AdapterRef]] = {}
        self._problems: dict[str, str] = {}
        self._began, self._due = 0.0, float("-inf")
        self._refresh: SingleFlight[None, None] = SingleFlight(limit=1)

    async def close(self) -> None:
        """Give up a listing that is being made."""
        await self._refresh.close()

    async def aliases(self) -> Mapping[str, Sequence[AdapterRef]]:
        """Each alias, and what it stands for: several adapters where sources disagree."""
        await self._fresh()
        return self._aliases

    async def entries(self) -> list[AdapterListing]:
        """Every adapter, by canonical id; aliases only where they are one's own."""
        aliases = await self.aliases()
        found = [listing for listings in self._listed.values() for listing in listings]
        usable = (x if x.alias and len(aliases.get(x.alias, ())) == 1 else AdapterListing(x.ref) for x in found)
        return sorted(usable, key=lambda listing: str(listing.ref))

    async def similar(self, name: str) -> str | None:
        """The listed adapter whose alias or id is most like `name`, as a request would name it."""
        names: dict[str, str] = {alias: alias for alias, refs in (await self.aliases()).items() if len(refs) == 1}
        for listings in self._listed.values():
            for listing in listings:
                names.setdefault(listing.ref.id, str(listing.ref))
                names.setdefault(str(listing.ref), str(listing.ref))
        compared = list(names)[:MAX_COMPARED]
        near = [name] if name in names else difflib.get_close_matches(name, compared, n=1, cutoff=SIMILAR)
        return names[near[0]] if near else None

    async def _fresh(self) -> None:
        """List the sources again if their last answer is too old; a slow one is not waited for for long."""
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
                found = await self._sources[source].listing()
            if not all(isinstance(listing, AdapterListing) for listing in found):
                raise TypeError("listing must return AdapterListing objects")
        except TimeoutError:
            self._failed(source, f"it took more than {LISTING_TIMEOUT:g} s")
        except Exception as error:
            self._failed(source, f"{type(error).__name__}: {error}")
        else:
            self._problems.pop(source, None)
            # No source speaks for another.
            self._listed[source] = tuple(listing for listing in found if listing.ref.source == source)
            self._aliases = self._by_alias()

    def _failed(self, source: str, problem: str) -> None:
        """The source's last listing stays. Its problem is logged once."""
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
