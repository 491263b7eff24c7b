"""Runs batches beside live traffic, behind it in priority; what was done survives whatever happens.

Each line's result is in the database as soon as it is there. A runner that ends, however it ends, loses its lease,
and the next one, in this process or another, goes on with the lines that have no result.

Owners share the places: who has fewer comes first, and if somebody with fewer waits, a batch of who has more leaves.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

from loguru import logger

from motet.api.batches.store import BatchStore, Claimed
from motet.api.batches.work import UNREADABLE, PutBack, Work
from motet.api.services import Services

POLL_SECONDS = 0.5
RENEW_SECONDS = 2.0
TURN_SECONDS = 10.0
"""How long a batch keeps its place though others wait."""

MAX_BATCHES = 4


@dataclass(eq=False)
class _Place:
    """A batch that is run, and since when."""

    owner: str
    work: Work
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
        """Begin to look for batches."""
        self._main = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Stop at once; lines that are being run will be run again."""
        tasks = [*self._running, *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._store.release(self._id)
        except Exception as error:  # the rest of the server has to end, too
            logger.warning("batches cannot be let go of at once: {}", error)

    async def _look(self) -> None:
        told = ""
        while True:
            try:
                claimed = await self._claim()
                told = ""
            except Exception as error:
                if told != str(error):  # the disk may stay away for long
                    logger.error("batches cannot be read: {}", error)
                told = str(error)
                claimed = None
            if claimed is None:
                await asyncio.sleep(POLL_SECONDS)
                continue
            work = Work(self._services, claimed, self._gate)
            task = asyncio.create_task(self._run(work))
            self._running[task] = _Place(claimed.owner, work)
            task.add_done_callback(self._running.pop)

    async def _claim(self) -> Claimed | None:
        """The next batch, if there is a place for it."""
        held = Counter(place.owner for place in self._running.values())
        if len(self._running) < MAX_BATCHES:
            return await self._store.claim(self._id, held)
        waiting = await self._store.waiting()
        leaving = sum(place.work.leaving for place in self._running.values())
        if leaving < len(waiting):
            fewest = min(held[owner] for owner in waiting)
            over = time.monotonic() - TURN_SECONDS
            staying = [place for place in self._running.values() if not place.work.leaving and place.began < over]
            longest = min(staying, key=lambda place: (-held[place.owner], place.began), default=None)
            if longest is not None and held[longest.owner] > fewest:
                longest.work.leave()
        return None

    async def _run(self, work: Work) -> None:
        """Run a batch for as long as it is this runner's."""
        batch = work.claimed.batch
        running = asyncio.create_task(work.run())
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=RENEW_SECONDS)
                status = await self._store.renew(self._id, batch.id)
                if status is None:
                    return
                if status == "cancelling" and batch.status != "cancelling" and not running.done():
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                    await work.finish("cancelled")
                    return
            await running
        except PutBack as back:
            await self._store.put_back(self._id, batch.id, back.seconds)
        except FileNotFoundError:
            logger.error("batch {}: its input file is gone", batch.id)
            await work.finish("failed", [UNREADABLE])
        except Exception as error:  # who takes it over may have more luck
            logger.error("batch {} was interrupted: {}", batch.id, error)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
