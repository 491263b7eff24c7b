"""The work on one batch: its input is checked, its lines are run, and its output files are written."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Container, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import UNSET
from msgspec.structs import replace

from motet.api.batches.lines import Waits, check_lines, expired_line, read_lines, run_line, unkept_line
from motet.api.batches.objects import BatchError, BatchErrors, BatchObject, RequestCounts
from motet.api.batches.store import BatchStore, Claimed
from motet.api.http.caller import Caller
from motet.api.routes.files import file_store
from motet.api.services import Services
from motet.api.storage.files import new_file
from motet.core import error_codes
from motet.core.errors import PayloadTooLarge

Ending: TypeAlias = Literal["completed", "expired", "cancelled", "failed"]

RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
PATIENCE = 2
"""Times that a line is tried again before its batch may be put back."""

PUT_BACK_SECONDS = 10.0
PRIORITY = 1000
"""Added to what a line asks for: live traffic has -128 to 127."""

UNREADABLE = BatchError(code=error_codes.FILE_NOT_FOUND, message="the input file is not there any more")


class PutBack(Exception):
    """Others may have this batch's place; nobody is to take it up again for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Work:
    """What is to be done for a batch, as far as it is not done yet. Lines wait for each other at `gate`."""

    def __init__(self, services: Services, claimed: Claimed, gate: asyncio.Semaphore) -> None:
        self.claimed = claimed
        self.leaving = False
        self._services = services
        self._store = BatchStore(services.database)
        self._files = file_store(services)
        self._gate = gate
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[int] = set()
        self._late = False

    def leave(self) -> None:
        """Begin no more lines; `run` raises PutBack when those that run have ended."""
        self.leaving = True

    async def run(self) -> None:
        """Do what there is to do. Raises PutBack, and FileNotFoundError if the input is gone."""
        batch = self.claimed.batch
        if batch.status == "validating":
            batch = await self._validate(batch)
        if batch.status == "in_progress":
            await self._lines(batch)
            await self.finish("expired" if self._late else "completed")
        elif batch.status in ("cancelling", "finalizing"):
            await self.finish("completed")

    async def finish(self, ending: Ending, errors: Sequence[BatchError] = ()) -> None:
        """Write the output files, and say that the batch has ended.

        How it ends is noted first, and stays: what was about to end otherwise does, and a cancel comes before `ending`.
        """
        owner, id = self.claimed.owner, self.claimed.batch.id

        def note(batch: BatchObject) -> BatchObject:
            if batch.status not in ("in_progress", "cancelling"):
                return batch
            now = int(time.time())
            noted: dict[str, Any] = {"status": "finalizing", "finalizing_at": now}
            if batch.status != "cancelling" and ending != "completed":
                noted |= {f"{ending}_at": now, "errors": BatchErrors(data=list(errors)) if errors else None}
            return replace(batch, **noted)

        batch = await self._store.change(owner, id, note)
        if batch.status != "finalizing":
            return
        files: dict[str, str] = {}
        if batch.request_counts.completed:
            files["output_file_id"] = await self._write(batch, failed=False)
        if batch.request_counts.failed:
            files["error_file_id"] = await self._write(batch, failed=True)
        status = _ending(batch)
        ended: dict[str, Any] = {**files, "status": status, f"{status}_at": int(time.time())}
        await self._store.change(owner, id, lambda b: replace(b, **ended) if b.status == "finalizing" else b)

    async def _write(self, batch: BatchObject, failed: bool) -> str:
        """Write an output file; its id, which is the same however often it is written. Raises LookupError."""
        counts = batch.request_counts
        count = counts.failed if failed else counts.completed
        name = f"{batch.id}_{'errors' if failed else 'output'}.jsonl"
        id = f"file-{uuid.uuid5(uuid.NAMESPACE_OID, name).hex}"
        expires = None if batch.output_expires_after is UNSET else batch.output_expires_after
        file = new_file(name, "batch_output", expires, id)

        async def content() -> AsyncIterator[bytes]:
            written = 0
            async for page in self._store.results(batch.id, failed):
                written += len(page)
                yield b"".join(line + b"\n" for line in page)
            if written != count:  # who took the batch over has ended it, with a file that is whole
                raise LookupError(f"{count - written} results are gone")

        await self._files.put(self.claimed.owner, file, content())
        return id

    async def _validate(self, batch: BatchObject) -> BatchObject:
        path = self._files.path(batch.input_file_id)
        try:
            count, errors = await asyncio.to_thread(check_lines, path, batch.endpoint)
        except OSError:
            count, errors = 0, [UNREADABLE]
        now = int(time.time())

        def change(current: BatchObject) -> BatchObject:
            if current.status != "validating":
                return current
            if errors or not count:
                return replace(current, status="failed", failed_at=now, errors=BatchErrors(data=errors))
            return replace(current, status="in_progress", in_progress_at=now, request_counts=RequestCounts(count))

        return await self._store.change(self.claimed.owner, batch.id, change)

    async def _lines(self, batch: BatchObject) -> None:
        """Run the lines that have no result. Raises PutBack if not all of them are to be run now."""
        done = await self._store.done(batch.id)
        lines = read_lines(self._files.path(batch.input_file_id))
        # A line that waits for its adapter's source takes its batch's room, and nobody else's turn.
        room = asyncio.Semaphore(self._services.settings.batch_concurrency)
        failures: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            room.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        try:
            while (entry := await asyncio.to_thread(_next, lines, done)) is not None:
                await room.acquire()
                if failures or self.leaving:
                    break
                self._tasks.add(task := asyncio.create_task(self._line(batch, *entry)))
                task.add_done_callback(ended)
            await asyncio.gather(*self._tasks)
            if failures:
                raise failures[0]
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.leaving:
            raise PutBack(0)

    async def _line(self, batch: BatchObject, number: int, raw: bytes) -> None:
        """Run a line until it has a result. Raises PutBack if it waits, and so do all the others."""
        caller = Caller(owner=self.claimed.owner, priority=PRIORITY, request_id=f"{batch.id}-{number}")
        for attempt in itertools.count():
            if time.time() > batch.expires_at:
                self._late = True
                failed, result = True, expired_line(raw)
                break
            try:
                async with self._gate:
                    if self.leaving:
                        return
                    failed, result = await run_line(self._services, caller, raw)
                break
            except Waits:
                self._waiting.add(number)
                if attempt >= PATIENCE and len(self._waiting) == len(self._tasks):
                    raise PutBack(PUT_BACK_SECONDS) from None
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                self._waiting.discard(number)
        try:
            await self._store.keep(batch.id, number, failed, result, checked=True)
        except PayloadTooLarge as error:
            await self._store.keep(batch.id, number, True, unkept_line(raw, error))


def _ending(batch: BatchObject) -> Ending:
    """How a batch was about to end."""
    if batch.failed_at:
        return "failed"
    if batch.expired_at:
        return "expired"
    return "cancelled" if batch.cancelling_at else "completed"


def _next(lines: Iterator[tuple[int, bytes]], done: Container[int]) -> tuple[int, bytes] | None:
    return next((entry for entry in lines if entry[0] not in done), None)
