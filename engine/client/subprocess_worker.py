"""Runs untrusted work in a child process with a time limit, and replaces the process when it hangs or dies.

This is the parent's side; the child's main loop is subprocess_main.py. The caller defines what the frames contain.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from motet.core.errors import Overloaded, Unavailable
from motet.engine.client.subprocess_main import LENGTH_BYTES

_START_SECONDS = 30.0
# The answer may have arrived while other work blocked the event loop: look once more before killing.
_GRACE_SECONDS = 0.05
_MAX_ANSWER_BYTES = (4 << 20) + 4096
# All that Python needs to start, and the time zone for strftime_now; no tokens and no keys.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ")


class TooSlow(Exception):
    """The worker did not answer in time, and was killed."""


class Crashed(Exception):
    """The worker died before it answered, or its answer was malformed."""


class SubprocessWorker:
    """A process that runs `module` and handles one request at a time, in at most `seconds`; `room` callers may wait.

    Errors use `task` to say what the process is for.
    """

    def __init__(self, module: str, task: str, seconds: float, room: int) -> None:
        self.waiting = 0
        self._module, self._task = module, task
        self._room = room
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._closed = False
        self._process: asyncio.Task[Process] | None = None
        self._endings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[None]:
        """Wait until the worker is free. Raises Overloaded if too many callers wait, Unavailable once closed."""
        if self.waiting >= self._room:
            raise Overloaded(f"too many requests are waiting to have {self._task}; try again")
        self.waiting += 1
        try:
            async with self._lock:
                if self._closed:
                    raise Unavailable("the server is shutting down")
                yield
        finally:
            self.waiting -= 1

    async def exchange(self, frame: bytes) -> bytes:
        """Send one frame to the worker and return its answer; only within acquire().

        Raises TooSlow, Crashed, or Unavailable if no worker can be started. Cancelling it kills the worker: the next
        caller would otherwise read this answer.
        """
        process = await self._started_process()
        exchange_task = asyncio.create_task(_send_and_receive(process, frame))
        try:
            for timeout in (self._seconds, _GRACE_SECONDS):
                await asyncio.wait({exchange_task}, timeout=timeout)
                if exchange_task.done():
                    return exchange_task.result()
            raise TooSlow
        except BaseException:
            exchange_task.cancel()
            self._replace(process, exchange_task)
            raise

    async def renew(self) -> None:
        """Replace the worker by a new one; only within acquire()."""
        self._replace(await self._started_process())

    async def close(self) -> None:
        """End the worker after its current request."""
        self._closed = True
        async with self._lock:
            starting, self._process = self._process, None
            if starting is not None:
                starting.cancel()
                await asyncio.wait({starting})
                if not starting.cancelled() and starting.exception() is None:
                    await _end(starting.result())
            await asyncio.gather(*self._endings)

    async def _started_process(self) -> Process:
        if self._process is None:
            self._start()
        assert self._process is not None
        try:
            process = await asyncio.shield(self._process)
        except Unavailable:
            self._process = None
            raise
        if process.returncode is None:
            return process
        self._replace(process)
        return await asyncio.shield(self._process)

    def _start(self) -> None:
        self._process = asyncio.create_task(_spawn(self._module, self._task))
        # The next caller gets the exception of a failed start. Without one, asyncio must not log it as never retrieved.
        self._process.add_done_callback(lambda starting: starting.cancelled() or starting.exception())

    def _replace(self, process: Process, exchange_task: asyncio.Task[bytes] | None = None) -> None:
        """End `process` in the background, and start its successor at once, so that the next caller does not wait."""
        ending = asyncio.create_task(_end(process, exchange_task))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        self._start()


async def _spawn(module: str, task: str) -> Process:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    command = (sys.executable, "-P", "-m", module)
    # A session of its own: Ctrl-C must not end it, since the server needs it while it drains.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            await _read_frame(process)
    except (TimeoutError, Crashed) as error:
        await _end(process)
        raise Unavailable(f"the process for requests that wait to have {task} does not start") from error
    except BaseException:
        await _end(process)
        raise
    return process


async def _end(process: Process, exchange_task: asyncio.Task[bytes] | None = None) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    if exchange_task is not None:
        await asyncio.wait({exchange_task})  # only one task may read from a pipe
    assert process.stdin is not None
    process.stdin.close()
    await process.communicate()  # reads to the end and reaps the process


async def _send_and_receive(process: Process, frame: bytes) -> bytes:
    assert process.stdin is not None
    try:
        process.stdin.write(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)
        await process.stdin.drain()
    except ConnectionError as error:
        raise Crashed from error
    return await _read_frame(process)


async def _read_frame(process: Process) -> bytes:
    assert process.stdout is not None
    try:
        length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
        if length > _MAX_ANSWER_BYTES:
            raise Crashed
        return await process.stdout.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise Crashed from error
