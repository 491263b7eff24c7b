"""Tokenises in threads, off the event loop, shared fairly between callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from motet.engine.client.fair_queue import FairQueue

T = TypeVar("T")

LONG_CHARACTERS = 64 * 1024
"""Work on more characters takes tens of milliseconds and has a thread of its own."""

SHORT_THREADS, LONG_THREADS = 2, 1
SHORT_QUEUE, LONG_QUEUE = 2048, 128


class Tokenising:
    """Few threads for work on text, to leave the cores to others; short texts never wait for long ones."""

    def __init__(self) -> None:
        self._short = _Threads("texts", SHORT_THREADS, SHORT_QUEUE)
        self._long = _Threads("long-texts", LONG_THREADS, LONG_QUEUE)

    async def run(self, flow: str, size: int, work: Callable[[], T]) -> T:
        """Run `work` on `size` characters or tokens in `flow`'s turn and return its result. Raises Overloaded."""
        threads = self._long if size > LONG_CHARACTERS else self._short
        async with threads.queue.acquire(flow):
            running = asyncio.get_running_loop().run_in_executor(threads.executor, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                # The place in the queue is free only when the thread is.
                if not running.cancel():
                    await asyncio.wait({running})
                raise


class _Threads:
    def __init__(self, name: str, count: int, capacity: int) -> None:
        self.queue = FairQueue("their text tokenised", count, capacity, capacity // 2)
        self.executor = ThreadPoolExecutor(count, name)
