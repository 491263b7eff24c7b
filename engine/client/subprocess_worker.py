"""A process for foreign work and the queue in front of it: started when needed, replaced when it hangs or dies.

Knows processes and frames; what is in the frames is the caller's affair.
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
# Somebody else may have held the event loop while the answer lay there: look once more before killing.
_GRACE_SECONDS = 0.05
_MAX_ANSWER_BYTES = (4 << 20) + 4096
# What Python may need to start, and the local time for strftime_now: no tokens, no keys.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ")


class TooSlow(Exception):
    """The worker did not answer in time, and was killed."""


class Crashed(Exception):
    """The worker died before it answered, or answered nonsense."""


class SubprocessWorker:
    """A process of `module` that does one thing at a time, `seconds` each at most; `room` callers may wait for it.

    `task` says in errors what it is for.
    """

    def __init__(self, module: str, task: str, seconds: float, room: int) -> None:
        self.waiting = 0
        self._module, self._task = module, task
        self._room = room
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._closed = False
        self._worker: asyncio.Task[Process] | None = None
        self._endings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the worker to be free. Raises Overloaded if too many wait, Unavailable once closed."""
        if self.waiting >= self._room:
            raise Overloaded(f"too many requests are waiting to have {self._task}; try again")
        self.waiting += 1
        try:
            async with self._turn:
                if self._closed:
                    raise Unavailable("the server is shutting down")
                yield
        finally:
            self.waiting -= 1

    async def exchange(self, frame: bytes) -> bytes:
        """Send one frame to the worker and return its answer; only within turn().

        Raises TooSlow, Crashed, or Unavailable if no worker can be started. Cancelled, it kills the worker, whose
        answer would be taken for the next one's.
        """
        process = await self._running()
        talk = asyncio.create_task(_converse(process, frame))
        try:
            for patience in (self._seconds, _GRACE_SECONDS):
                await asyncio.wait({talk}, timeout=patience)
                if talk.done():
                    return talk.result()
            raise TooSlow
        except BaseException:
            talk.cancel()
            self._replace(process, talk)
            raise

    async def renew(self) -> None:
        """Replace the worker by a fresh one; only within turn()."""
        self._replace(await self._running())

    async def close(self) -> None:
        """End the worker, after what it is doing now."""
        self._closed = True
        async with self._turn:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.cancel()
                await asyncio.wait({worker})
                if not worker.cancelled() and worker.exception() is None:
                    await _end(worker.result())
            await asyncio.gather(*self._endings)

    async def _running(self) -> Process:
        if self._worker is None:
            self._start()
        assert self._worker is not None
        try:
            process = await asyncio.shield(self._worker)
        except Unavailable:
            self._worker = None
            raise
        if process.returncode is None:
            return process
        self._replace(process)
        return await asyncio.shield(self._worker)

    def _start(self) -> None:
        self._worker = asyncio.create_task(_spawn(self._module, self._task))
        # A failed start is told to whoever asks next; nobody may.
        self._worker.add_done_callback(lambda worker: worker.cancelled() or worker.exception())

    def _replace(self, process: Process, talk: asyncio.Task[bytes] | None = None) -> None:
        """End `process` in the background, and start its successor at once, so that nobody has to wait for it."""
        ending = asyncio.create_task(_end(process, talk))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        self._start()


async def _spawn(module: str, task: str) -> Process:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    command = (sys.executable, "-P", "-m", module)
    # A session of its own: Ctrl-C is for the server, which may still need it while it drains.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            await _read_frame(process)
    except (TimeoutError, Crashed) as error:
        await _end(process)
        raise Unavailable(f"the process by which requests have {task} does not start") from error
    except BaseException:
        await _end(process)
        raise
    return process


async def _end(process: Process, talk: asyncio.Task[bytes] | None = None) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    if talk is not None:
        await asyncio.wait({talk})  # two may not read from one pipe
    assert process.stdin is not None
    process.stdin.close()
    await process.communicate()  # reads to the end and reaps


async def _converse(process: Process, frame: bytes) -> bytes:
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
