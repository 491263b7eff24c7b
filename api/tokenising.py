"""Tokenising in threads, off the event loop, shared fairly between callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from motet.engine.client.fair_queue import FairQueue

T = TypeVar("T")

LONG_CHARACTERS = 64 * 1024
"""Work on more than this takes tens of milliseconds and has a thread of its own."""

SHORT_THREADS, LONG_THREADS = 2, 1
SHORT_ROOM, LONG_ROOM = 2048, 128


class Tokenising:
    """Threads for work on text: few, to leave others the cores; nothing short waits behind anything long."""

    def __init__(self) -> None:
        self._short = _Threads("texts", SHORT_THREADS, SHORT_ROOM)
        self._long = _Threads("long-texts", LONG_THREADS, LONG_ROOM)

    async def run(self, flow: str, size: int, work: Callable[[], T]) -> T:
        """What `work` on `size` characters or tokens returns, in the turn of `flow`. Raises Overloaded."""
        threads = self._long if size > LONG_CHARACTERS else self._short
        async with threads.queue.acquire(flow):
            running = asyncio.get_running_loop().run_in_executor(threads.executor, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                # The place is free only once the thread is.
                if not running.cancel():
                    await asyncio.wait({running})
                raise


class _Threads:
    def __init__(self, name: str, count: int, room: int) -> None:
        self.queue = FairQueue("their text tokenised", count, room, room // 2)
        self.executor = ThreadPoolExecutor(count, name)
