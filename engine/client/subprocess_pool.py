"""A pool of worker processes for the same kind of untrusted work, shared fairly between callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from motet.engine.client.fair_queue import FairQueue
from motet.engine.client.subprocess_worker import SubprocessWorker


class SubprocessPool:
    """`count` worker processes of `module`, each started when first needed.

    `room` callers may wait or work, half of them of one flow.
    """

    def __init__(self, module: str, task: str, seconds: float, *, count: int, room: int) -> None:
        self._workers = [SubprocessWorker(module, task, seconds, room=1) for _ in range(count)]
        self._queue = FairQueue(task, count, room, room // 2)

    @asynccontextmanager
    async def acquire(self, flow: str) -> AsyncIterator[SubprocessWorker]:
        """Wait for a free worker. Raises Overloaded if too many callers wait, Unavailable once closed."""
        async with self._queue.acquire(flow) as index, self._workers[index].acquire():
            yield self._workers[index]

    async def close(self) -> None:
        """End each process after its current request; callers that wait get Unavailable."""
        await asyncio.gather(*(worker.close() for worker in self._workers))
