"""Chooses which batches run, with a lower priority than live requests. Finished lines survive a crash.

Each line's result is stored as soon as it is ready. A runner that ends loses its lease, and the next runner, in this
process or another, continues with the lines that have no result.

Owners share the MAX_BATCHES places: the owner with the fewest running batches comes first, and if such an owner waits,
a batch of the owner with the most leaves.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

from loguru import logger

from motet.api.batches.execution import UNREADABLE, BatchExecution, PutBack
from motet.api.batches.store import BatchStore, Claimed
from motet.api.services import Services

POLL_SECONDS = 0.5
RENEW_SECONDS = 2.0
TURN_SECONDS = 10.0
"""How long a batch keeps its place while other owners wait."""

MAX_BATCHES = 4


@dataclass(eq=False)
class _Place:
    """A running batch."""

    owner: str
    execution: BatchExecution
    began: float = field(default_factory=time.monotonic)


class BatchRunner:
    """The batches of one API process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = BatchStore(services.database)
        self._id = uuid.uuid4().hex
        self._gate = asyncio.Semaphore(services.settings.batch_concurrency)
        self._running: dict[asyncio.Task[None], _Place] = {}
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start looking for batches."""
        self._main = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Stop at once; lines without a result will run again."""
        tasks = [*self._running, *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._store.release(self._id)
        except Exception as error:  # the rest of the server must still shut down
            logger.warning("batch leases cannot be released: {}", error)

    async def _look(self) -> None:
        logged_error = ""
        while True:
            try:
                claimed = await self._claim()
                logged_error = ""
            except Exception as error:
                if logged_error != str(error):  # log it once, however long it lasts
                    logger.error("batches cannot be read: {}", error)
                logged_error = str(error)
                claimed = None
            if claimed is None:
                await asyncio.sleep(POLL_SECONDS)
                continue
            execution = BatchExecution(self._services, claimed, self._gate)
            task = asyncio.create_task(self._run(execution))
            self._running[task] = _Place(claimed.owner, execution)
            task.add_done_callback(self._running.pop)

    async def _claim(self) -> Claimed | None:
        """The next batch, if a place is free; otherwise, choose a batch to leave if an owner with fewer waits."""
        running_by_owner = Counter(place.owner for place in self._running.values())
        if len(self._running) < MAX_BATCHES:
            return await self._store.claim(self._id, running_by_owner)
        waiting = await self._store.waiting_owners()
        leaving = sum(place.execution.leaving for place in self._running.values())
        if leaving < len(waiting):
            fewest = min(running_by_owner[owner] for owner in waiting)
            turn_over = time.monotonic() - TURN_SECONDS
            staying = [
                place for place in self._running.values() if not place.execution.leaving and place.began < turn_over
            ]
            longest = min(staying, key=lambda place: (-running_by_owner[place.owner], place.began), default=None)
            if longest is not None and running_by_owner[longest.owner] > fewest:
                longest.execution.leave()
        return None

    async def _run(self, execution: BatchExecution) -> None:
        """Run a batch as long as this runner holds its lease."""
        batch = execution.claimed.batch
        running = asyncio.create_task(execution.run())
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=RENEW_SECONDS)
                status = await self._store.renew(self._id, batch.id)
                if status is None:
                    return
                if status == "cancelling" and batch.status != "cancelling" and not running.done():
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                    await execution.finish("cancelled")
                    return
            await running
        except PutBack as put_back:
            await self._store.put_back(self._id, batch.id, put_back.seconds)
        except FileNotFoundError:
            logger.error("batch {}: its input file is gone", batch.id)
            await execution.finish("failed", [UNREADABLE])
        except Exception as error:  # the next runner tries again
            logger.error("batch {} was interrupted: {}", batch.id, error)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
