"""Runs batches beside live traffic, behind it in priority; what was done survives whatever happens.

Each line's result is in the database as soon as it is there. A runner that ends, however it ends, loses its lease,
and the next one, in this process or another, goes on with the lines that have no result.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator

from loguru import logger
from msgspec.structs import replace

from motet.api.batches.lines import Waits, check_lines, expired_line, read_lines, run_line
from motet.api.batches.objects import BatchErrors, BatchObject, RequestCounts
from motet.api.batches.store import BatchStore, Claimed
from motet.api.caller import Caller
from motet.api.file_store import FileStore
from motet.api.files import file_store
from motet.api.services import Services
from motet.core.errors import MotetError

POLL_SECONDS = 0.5
RENEW_SECONDS = 2.0
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
MAX_BATCHES = 4
PRIORITY = 1000
"""Added to what a line asks for: live traffic has -128 to 127."""


class BatchRunner:
    """The batches of one API process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = BatchStore(services.database)
        self._files: FileStore = file_store(services)
        self._id = uuid.uuid4().hex
        self._gate = asyncio.Semaphore(services.settings.batch_concurrency)
        self._running: set[asyncio.Task[None]] = set()
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
        await self._store.release(self._id)

    async def _look(self) -> None:
        while True:
            try:
                claimed = await self._store.claim(self._id) if len(self._running) < MAX_BATCHES else None
            except Exception as error:
                logger.error("batches cannot be read: {}", error)
                claimed = None
            if claimed is None:
                await asyncio.sleep(POLL_SECONDS)
                continue
            task = asyncio.create_task(self._run(claimed))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, claimed: Claimed) -> None:
        """Run a batch for as long as it is this runner's."""
        batch = claimed.batch
        work = asyncio.create_task(self._work(claimed))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=RENEW_SECONDS)
                status = await self._store.renew(self._id, batch.id)
                if status is None:
                    return
                if status == "cancelling" and batch.status != "cancelling" and not work.done():
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    await self._finish(claimed.owner, batch.id, "cancelled")
                    return
            await work
        except MotetError as error:
            logger.error("batch {} failed: {}", batch.id, error.message)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, claimed: Claimed) -> None:
        batch, owner = claimed.batch, claimed.owner
        if batch.status == "validating":
            batch = await self._validate(owner, batch)
        if batch.status == "in_progress":
            late = await self._lines(owner, batch)
            await self._finish(owner, batch.id, "expired" if late else "completed")
        elif batch.status in ("cancelling", "finalizing"):
            await self._finish(owner, batch.id, "cancelled" if batch.cancelling_at else "completed")

    async def _validate(self, owner: str, batch: BatchObject) -> BatchObject:
        path = self._files.path(batch.input_file_id)
        try:
            count, errors = await asyncio.to_thread(check_lines, path, batch.endpoint)
        except OSError:
            count, errors = 0, []
        now = int(time.time())

        def change(current: BatchObject) -> BatchObject:
            if current.status != "validating":
                return current
            if errors or not count:
                return replace(current, status="failed", failed_at=now, errors=BatchErrors(data=errors))
            return replace(current, status="in_progress", in_progress_at=now, request_counts=RequestCounts(count))

        return await self._store.change(owner, batch.id, change)

    async def _lines(self, owner: str, batch: BatchObject) -> bool:
        """Run the lines that have no result; whether the time was over before all were run."""
        done = await self._store.done(batch.id)
        lines = read_lines(self._files.path(batch.input_file_id))
        tasks: set[asyncio.Task[None]] = set()
        late = False
        try:
            while (entry := await asyncio.to_thread(_next, lines)) is not None:
                number, raw = entry
                if number in done:
                    continue
                if time.time() > batch.expires_at:
                    late = True
                    await self._store.keep(batch.id, number, True, expired_line(raw))
                    continue
                await self._gate.acquire()
                tasks.add(task := asyncio.create_task(self._line(owner, batch, number, raw)))
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return late

    async def _line(self, owner: str, batch: BatchObject, number: int, raw: bytes) -> None:
        try:
            caller = Caller(owner=owner, priority=PRIORITY, request_id=f"{batch.id}-{number}")
            attempt = 0
            while True:
                try:
                    failed, result = await run_line(self._services, caller, raw)
                    break
                except Waits:
                    await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                    attempt += 1
            await self._store.keep(batch.id, number, failed, result)
        finally:
            self._gate.release()

    async def _finish(self, owner: str, id: str, status: str) -> None:
        """Write the output files, and say that the batch has ended."""
        now = int(time.time())
        batch = await self._store.change(owner, id, lambda b: replace(b, status="finalizing", finalizing_at=now))
        files: dict[str, str] = {}
        for field, failed in (("output_file_id", False), ("error_file_id", True)):
            results = list(await self._store.results(id, failed))
            if results:
                name = f"{id}_{'errors' if failed else 'output'}.jsonl"
                files[field] = (await self._files.put_lines(owner, name, "batch_output", results)).id
        ended = {f"{status}_at": int(time.time())}
        counts = batch.request_counts
        await self._store.change(
            owner, id, lambda b: replace(b, status=status, request_counts=counts, **files, **ended)
        )
        await self._store.forget_results(id)


def _next(lines: Iterator[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    return next(lines, None)
