"""Several processes for the same kind of foreign work, shared fairly between those who send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from motet.engine.client.fair_queue import FairQueue
from motet.engine.client.subprocess_worker import SubprocessWorker


class SubprocessPool:
    """`count` lanes of `module`, each started when it is first needed; `room` callers, half of them of one flow."""

    def __init__(self, module: str, task: str, seconds: float, *, count: int, room: int) -> None:
        self._lanes = [SubprocessWorker(module, task, seconds, room=1) for _ in range(count)]
        self._queue = FairQueue(task, count, room, room // 2)

    @asynccontextmanager
    async def turn(self, flow: str) -> AsyncIterator[SubprocessWorker]:
        """A lane for one exchange. Raises Overloaded if too many wait, Unavailable once closed."""
        async with self._queue.place(flow) as index, self._lanes[index].turn():
            yield self._lanes[index]

    async def close(self) -> None:
        """End the processes, each after what it is doing now; callers that wait are refused."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))
