"""Executes one batch: checks its input, runs its lines and writes its output files."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Container, Iterator, Sequence

from msgspec import UNSET

from motet.api.batches.lines import TryAgain, check_lines, expired_line, no_room_line, read_lines, run_line
from motet.api.batches.objects import BatchError, BatchObject
from motet.api.batches.status import FinalStatus, ended, finalizing, validated
from motet.api.batches.store import BatchStore, Claimed
from motet.api.http.caller import Caller
from motet.api.routes.files import file_store
from motet.api.services import Services
from motet.api.storage.files import new_file
from motet.core import error_codes
from motet.core.errors import PayloadTooLarge

RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
LINE_RETRIES = 2
"""Retries of a line before its batch may be put back."""

PUT_BACK_SECONDS = 10.0
PRIORITY = 1000
"""Added to the priority of each line; live requests have -128 to 127."""

UNREADABLE = BatchError(code=error_codes.FILE_NOT_FOUND, message="the input file has been deleted")


class PutBack(Exception):
    """The batch gives its place to others; no runner may claim it again for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class BatchExecution:
    """The execution of a claimed batch, from where an earlier one ended. `gate` limits the lines that run at once."""

    def __init__(self, services: Services, claimed: Claimed, gate: asyncio.Semaphore) -> None:
        self.claimed = claimed
        self.leaving = False
        self._services = services
        self._store = BatchStore(services.database)
        self._files = file_store(services)
        self._gate = gate
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[int] = set()
        self._expired = False

    def leave(self) -> None:
        """Start no more lines; `run` raises PutBack when the running ones have ended."""
        self.leaving = True

    async def run(self) -> None:
        """Do the remaining work. Raises PutBack, and FileNotFoundError if the input file is gone."""
        batch = self.claimed.batch
        if batch.status == "validating":
            batch = await self._validate(batch)
        if batch.status == "in_progress":
            await self._run_lines(batch)
            await self.finish("expired" if self._expired else "completed")
        elif batch.status in ("cancelling", "finalizing"):
            await self.finish("completed")

    async def finish(self, final: FinalStatus, errors: Sequence[BatchError] = ()) -> None:
        """Write the output files and set the final status.

        The final status is stored before the files are written and does not change afterwards.
        """
        owner, id = self.claimed.owner, self.claimed.batch.id

        batch = await self._store.change(owner, id, lambda batch: finalizing(batch, final, errors))
        if batch.status != "finalizing":
            return
        files: dict[str, str] = {}
        if batch.request_counts.completed:
            files["output_file_id"] = await self._write(batch, failed=False)
        if batch.request_counts.failed:
            files["error_file_id"] = await self._write(batch, failed=True)
        await self._store.change(owner, id, lambda batch: ended(batch, files))

    async def _write(self, batch: BatchObject, failed: bool) -> str:
        """Write an output file and return its id, the same each time. Raises LookupError if results are missing."""
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
            if written != count:  # another runner has taken the batch over and ended it
                raise LookupError(f"{count - written} results are gone")

        await self._files.put(self.claimed.owner, file, content())
        return id

    async def _validate(self, batch: BatchObject) -> BatchObject:
        path = self._files.path(batch.input_file_id)
        try:
            count, errors = await asyncio.to_thread(check_lines, path, batch.endpoint)
        except OSError:
            count, errors = 0, [UNREADABLE]
        return await self._store.change(self.claimed.owner, batch.id, lambda current: validated(current, count, errors))

    async def _run_lines(self, batch: BatchObject) -> None:
        """Run the lines without a result. Raises PutBack if the batch leaves before all of them have run."""
        finished = await self._store.finished_lines(batch.id)
        lines = read_lines(self._files.path(batch.input_file_id))
        # A line that waits for its adapter's source uses its batch's room, and no other batch's.
        room = asyncio.Semaphore(self._services.settings.batch_concurrency)
        failures: list[BaseException] = []

        def line_ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            room.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        try:
            while (entry := await asyncio.to_thread(_next, lines, finished)) is not None:
                await room.acquire()
                if failures or self.leaving:
                    break
                self._tasks.add(task := asyncio.create_task(self._run_line(batch, *entry)))
                task.add_done_callback(line_ended)
            await asyncio.gather(*self._tasks)
            if failures:
                raise failures[0]
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.leaving:
            raise PutBack(0)

    async def _run_line(self, batch: BatchObject, number: int, raw: bytes) -> None:
        """Run a line until it has a result. Raises PutBack if all lines wait for the engine or a source."""
        caller = Caller(owner=self.claimed.owner, priority=PRIORITY, request_id=f"{batch.id}-{number}")
        for attempt in itertools.count():
            if time.time() > batch.expires_at:
                self._expired = True
                failed, result = True, expired_line(raw)
                break
            try:
                async with self._gate:
                    if self.leaving:
                        return
                    failed, result = await run_line(self._services, caller, raw)
                break
            except TryAgain:
                self._waiting.add(number)
                if attempt >= LINE_RETRIES and len(self._waiting) == len(self._tasks):
                    raise PutBack(PUT_BACK_SECONDS) from None
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                self._waiting.discard(number)
        try:
            await self._store.add_result(batch.id, number, failed, result, checked=True)
        except PayloadTooLarge as error:
            await self._store.add_result(batch.id, number, True, no_room_line(raw, error))


def _next(lines: Iterator[tuple[int, bytes]], finished: Container[int]) -> tuple[int, bytes] | None:
    return next((entry for entry in lines if entry[0] not in finished), None)
