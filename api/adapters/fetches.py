"""Fetching adapters into the cache: a few new ones at a time, each watched for its size and its speed.

Sources are foreign code, and some of what they read is sent by strangers: a fetch that drips must neither hold up
the others nor go on for ever, and one that is too large must end before the disk is full.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from motet.api.adapters.outcomes import LoadLimits
from motet.api.adapters.source_calls import unavailable
from motet.core.errors import AdapterRefused

T = TypeVar("T")

BESIDE_WEIGHTS = 512 << 20
"""Bytes that an adapter's other files (tokenizer, templates, what a source writes meanwhile) may have."""


class FetchSlots:
    """Places for `count` fetches; one that has run for `seconds` goes on without, so that slow ones block no others."""

    def __init__(self, count: int, seconds: float) -> None:
        self._semaphore = asyncio.Semaphore(count)
        self._seconds = seconds

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Inside, the caller has a place, or had one."""
        await self._semaphore.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._semaphore.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()


async def watched(name: str, fetch: Awaitable[T], into: Path, limits: LoadLimits) -> T:
    """The result of `fetch`, which writes the adapter called `name` to `into`.

    Raises AdapterRefused when it has written too much, and Unavailable when it has begun and brings too little.
    """
    task = asyncio.ensure_future(fetch)
    size, since = 0, time.monotonic()
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=limits.watch_seconds)
            now, written = time.monotonic(), await asyncio.to_thread(tree_size, into)
            if written > limits.largest_adapter + BESIDE_WEIGHTS:
                raise AdapterRefused(f"{name} is larger than any adapter that this server could load", param="model")
            if written - size >= limits.stall_bytes or written == 0:
                size, since = written, now
            elif now - since > limits.stall_seconds and not task.done():
                rate = f"under {limits.stall_bytes} bytes in {limits.stall_seconds:g} s"
                raise unavailable(f"{name}: the source sends too slowly ({rate})")
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tree_size(directory: Path) -> int:
    """Bytes of the files below `directory`, as far as they can be seen."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
