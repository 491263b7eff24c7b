"""Calls adapter sources, which may be third-party code: with time-outs, limits on fetches, and safe errors.

Every failure of a source becomes a MotetError that does not contain the caller's token.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from loguru import logger

from motet.api.adapters.limits import LoadLimits
from motet.core import error_codes
from motet.core.adapter_source import AdapterRef, AdapterSource
from motet.core.errors import AdapterRefused, InvalidRequest, MotetError, Unavailable, from_info

T = TypeVar("T")


async def call_source(
    source: AdapterSource, ref: AdapterRef, token: str | None, seconds: float, call: Callable[[], Awaitable[T]]
) -> T:
    """The result of `call()`, which calls `source` about `ref`. Raises MotetError; Unavailable after `seconds`.

    Also raises Unavailable for every exception that is not a MotetError: the source is at fault, not the caller.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except MotetError as error:
        raise presentable(error, token) from None
    except TimeoutError:
        raise unavailable(f"{ref}: the source did not respond within {seconds:g} s") from None
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        logger.error(
            "adapter source {} ({}) failed for {}\n{}", ref.source, class_name(source), ref, _without(lines, token)
        )
        raise unavailable(
            f"{ref}: the adapter source failed ({type(error).__name__}); the server's log has the details"
        ) from None


def check_result(source: AdapterSource, method: str, result: object, expected: type) -> None:
    """Raise MotetError, naming the plugin's class, unless `result` of its `method` is an `expected`."""
    if isinstance(result, expected):
        return
    message = f"{class_name(source)}.{method} returned {type(result).__name__}; expected {expected.__name__}"
    logger.error("adapter source: {}", message)
    raise MotetError(message, code=error_codes.INVALID_SOURCE)


def class_name(source: AdapterSource) -> str:
    """The qualified class name of `source`, which identifies the plugin."""
    return f"{type(source).__module__}.{type(source).__qualname__}"


def presentable(error: MotetError, secret: str | None = None) -> MotetError:
    """A copy of `error` without `secret` (a token or a path) in its message; InvalidRequest gets a `param`."""
    info = error.info()
    param = info.param or ("model" if isinstance(error, InvalidRequest) else None)
    return from_info(msgspec.structs.replace(info, message=_without(info.message, secret), param=param))


def unavailable(message: str) -> Unavailable:
    """The error for a source that fails or cannot be reached."""
    return Unavailable(message, param="model", code=error_codes.SOURCE_UNAVAILABLE)


def _without(text: str, secret: str | None) -> str:
    return text.replace(secret, "[…]") if secret else text


MAX_OTHER_BYTES = 512 << 20
"""The maximum size of an adapter's other files (tokenizer, templates, temporary files), in bytes."""


class FetchSlots:
    """Slots for `count` fetches. After `seconds`, a fetch continues without a slot, so that it blocks no others."""

    def __init__(self, count: int, seconds: float) -> None:
        self._semaphore = asyncio.Semaphore(count)
        self._seconds = seconds

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it inside the context, for at most `seconds`."""
        await self._semaphore.acquire()
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._semaphore.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, release)
        try:
            yield
        finally:
            timer.cancel()
            release()


async def watched(name: str, fetch: Awaitable[T], into: Path, limits: LoadLimits) -> T:
    """The result of `fetch`, which writes the adapter called `name` to `into`.

    Raises AdapterRefused if it writes too much, and Unavailable if it writes too slowly once it has begun.
    """
    task = asyncio.ensure_future(fetch)
    size, since = 0, time.monotonic()
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=limits.watch_seconds)
            now, written = time.monotonic(), await asyncio.to_thread(tree_size, into)
            if written > limits.largest_adapter + MAX_OTHER_BYTES:
                raise AdapterRefused(f"{name} is larger than any adapter that this server can load", param="model")
            if written - size >= limits.stall_bytes or written == 0:
                size, since = written, now
            elif now - since > limits.stall_seconds and not task.done():
                rate = f"under {limits.stall_bytes} bytes in {limits.stall_seconds:g} s"
                raise unavailable(f"{name}: the source sends too slowly ({rate})")
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tree_size(directory: Path) -> int:
    """The total size of the readable files below `directory`, in bytes."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
