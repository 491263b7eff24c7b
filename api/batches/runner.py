"""Runs batches beside live traffic, behind it in priority; what was done survives whatever happens.

Each line's result is in the database as soon as it is there. A runner that ends, however it ends, loses its lease,
and the next one, in this process or another, goes on with the lines that have no result.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from loguru import logger
from msgspec.structs import replace

from motet.api.batches.lines import Waits, check_lines, expired_line, read_lines, run_line, unkept_line
from motet.api.batches.objects import BatchError, BatchErrors, BatchObject, RequestCounts
from motet.api.batches.store import BatchStore, Claimed
from motet.api.caller import Caller
from motet.api.file_store import FileStore
from motet.api.files import file_store
from motet.api.services import Services
from motet.core.errors import PayloadTooLarge

Ending: TypeAlias = Literal["completed", "expired", "cancelled", "failed"]

POLL_SECONDS = 0.5
RENEW_SECONDS = 2.0
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
PATIENCE = 2
"""Times that a line is tried again before its batch may be put back."""

PUT_BACK_SECONDS = 10.0
MAX_BATCHES = 4
_UNREADABLE = BatchError(code="file_not_found", message="the input file is not there any more")
PRIORITY = 1000
"""Added to what a line asks for: live traffic has -128 to 127."""


@dataclass
class _Lines:
    """The lines of a batch that are under way, those of them that wait, and whether its time was over for any."""

    tasks: set[asyncio.Task[None]]
    waiting: set[int] = field(default_factory=set)
    late: bool = False


class _PutBack(Exception):
    """Every line that could be run waits for something that is away: others may have this batch's place."""


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
        except _PutBack:
            await self._store.put_back(self._id, batch.id, PUT_BACK_SECONDS)
        except FileNotFoundError:
            logger.error("batch {}: its input file is gone", batch.id)
            await self._finish(claimed.owner, batch.id, "failed", [_UNREADABLE])
        except Exception as error:  # who takes it over may have more luck
            logger.error("batch {} was interrupted: {}", batch.id, error)
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
            await self._finish(owner, batch.id, _ending(batch), batch.errors.data if batch.errors else ())

    async def _validate(self, owner: str, batch: BatchObject) -> BatchObject:
        path = self._files.path(batch.input_file_id)
        try:
            count, errors = await asyncio.to_thread(check_lines, path, batch.endpoint)
        except OSError:
            count, errors = 0, [_UNREADABLE]
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
        # A line that waits for its adapter's source takes its batch's room, and nobody else's turn.
        room = asyncio.Semaphore(self._services.settings.batch_concurrency)
        state = _Lines(tasks)
        failures: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            room.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        try:
            while (entry := await asyncio.to_thread(_next, lines)) is not None:
                number, raw = entry
                if number in done:
                    continue
                await room.acquire()
                if failures:
                    break
                tasks.add(task := asyncio.create_task(self._line(Claimed(batch, owner), number, raw, state)))
                task.add_done_callback(ended)
            await asyncio.gather(*tasks)
            if failures:
                raise failures[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return state.late

    async def _line(self, claimed: Claimed, number: int, raw: bytes, state: _Lines) -> None:
        """Run a line until it has a result. Raises _PutBack if it waits, and so do all the others."""
        batch = claimed.batch
        caller = Caller(owner=claimed.owner, priority=PRIORITY, request_id=f"{batch.id}-{number}")
        for attempt in itertools.count():
            if time.time() > batch.expires_at:
                state.late = True
                failed, result = True, expired_line(raw)
                break
            try:
                async with self._gate:
                    failed, result = await run_line(self._services, caller, raw)
                break
            except Waits:
                state.waiting.add(number)
                if attempt >= PATIENCE and len(state.waiting) == len(state.tasks):
                    raise _PutBack from None
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                state.waiting.discard(number)
        try:
            await self._store.keep(batch.id, number, failed, result, checked=True)
        except PayloadTooLarge as error:
            await self._store.keep(batch.id, number, True, unkept_line(raw, error))

    async def _finish(self, owner: str, id: str, status: Ending, errors: Sequence[BatchError] = ()) -> None:
        """Write the output files, and say that the batch has ended. What its end is to be is noted first."""
        noted: dict[str, Any] = {"status": "finalizing", "finalizing_at": int(time.time())}
        if status != "completed":
            noted[f"{status}_at"] = noted["finalizing_at"]
        if errors:
            noted["errors"] = BatchErrors(data=list(errors))
        batch = await self._store.change(owner, id, lambda b: replace(b, **noted))
        files: dict[str, str] = {}
        for name_of, failed in (("output_file_id", False), ("error_file_id", True)):
            results = list(await self._store.results(id, failed))
            if results:
                name = f"{id}_{'errors' if failed else 'output'}.jsonl"
                files[name_of] = (await self._files.put_lines(owner, name, "batch_output", results)).id
        ended = {f"{status}_at": int(time.time())}
        counts = batch.request_counts
        await self._store.change(
            owner, id, lambda b: replace(b, status=status, request_counts=counts, **files, **ended)
        )
        await self._store.forget_results(id)


def _ending(batch: BatchObject) -> Ending:
    """How a batch was about to end."""
    if batch.failed_at:
        return "failed"
    if batch.expired_at:
        return "expired"
    return "cancelled" if batch.cancelling_at else "completed"


def _next(lines: Iterator[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    return next(lines, None)
