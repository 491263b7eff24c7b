"""At the start: how many adapters each source lists, and which of those on this machine cannot be served, and why.

Only configs are read, of a limited number of adapters; the weights have their turn when an adapter is first used.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from loguru import logger

from motet.api.adapters.source_calls import presentable
from motet.core.adapters import AdapterListing, AdapterSource
from motet.core.errors import AdapterRefused, MotetError

LISTING_SECONDS = 10.0

CHECK_SECONDS = 600.0
"""For all checks together; the loader may still be starting."""

MAX_CHECKED = 500
"""Adapters per source whose configs are read."""

MAX_LOGGED = 50
"""Lines per source."""


class ConfigChecker(Protocol):
    """What is needed of the loader's client."""

    async def check_config(self, directory: str) -> None:
        """Raise AdapterRefused if the config in `directory` cannot be served."""


async def log_inventory(sources: Mapping[str, AdapterSource], loader: ConfigChecker) -> None:
    """Log how many adapters each source lists and which configs are refused; a source that fails is left out."""
    for name, source in sorted(sources.items()):
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                listed = await source.listing()
        except Exception as error:  # a plugin's; its failing listing is logged when it is first used
            logger.debug("adapter source {} cannot be listed at the start: {}", name, type(error).__name__)
            continue
        logger.bind(source=name, adapters=len(listed)).info("adapters found")
        if not source.local_files:
            continue
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await _log_refused(name, source, listed[:MAX_CHECKED], loader)
        except (MotetError, TimeoutError):
            continue  # the loader is away


async def _log_refused(
    name: str, source: AdapterSource, listed: Sequence[AdapterListing], loader: ConfigChecker
) -> None:
    refused = 0
    for listing in listed:
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
    """Why the adapter's config cannot be served, if so. Raises Unavailable when the loader goes away."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            directory = await source.fetch(await source.resolve(listing.ref, None), None, Path(scratch))
    except AdapterRefused as error:
        return error
    except Exception:  # it has just gone, or its files do not respond
        return None
    try:
        await loader.check_config(str(directory))
    except AdapterRefused as error:
        shown = presentable(error, str(directory))
        return shown if isinstance(shown, AdapterRefused) else error
    return None
