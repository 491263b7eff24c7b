"""Calls adapter sources, which are foreign code: with time-outs, limits on fetches, and presentable errors.

Whatever a source does, what leaves here is a MotetError that does not hold the caller's token.
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
    """The result of `call()`, a call of `source` about `ref`. Raises MotetError; Unavailable after `seconds`.

    Unavailable, too, for every exception that is not a MotetError: the source failed, and the caller did not.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except MotetError as error:
        raise presentable(error, token) from None
    except TimeoutError:
        raise unavailable(f"{ref}: the source did not answer within {seconds:g} s") from None
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        logger.error(
            "adapter source {} ({}) failed for {}\n{}", ref.source, class_name(source), ref, _without(lines, token)
        )
        raise unavailable(
            f"{ref}: the adapter source failed ({type(error).__name__}); the server's log has the details"
        ) from None


def check_result(source: AdapterSource, method: str, result: object, expected: type) -> None:
    """Raise MotetError, naming the plugin's class, unless its `method` returned an `expected`."""
    if isinstance(result, expected):
        return
    message = f"{class_name(source)}.{method} returned {type(result).__name__}; expected {expected.__name__}"
    logger.error("adapter source: {}", message)
    raise MotetError(message, code=error_codes.INVALID_SOURCE)


def class_name(source: AdapterSource) -> str:
    """The class of `source` with its module, which names the plugin."""
    return f"{type(source).__module__}.{type(source).__qualname__}"


def presentable(error: MotetError, secret: str | None = None) -> MotetError:
    """A fresh copy of `error` without `secret` (a token, a path) in it, and with a `param` if a field is at fault."""
    info = error.info()
    param = info.param or ("model" if isinstance(error, InvalidRequest) else None)
    return from_info(msgspec.structs.replace(info, message=_without(info.message, secret), param=param))


def unavailable(message: str) -> Unavailable:
    """A source, or the way to it, is away."""
    return Unavailable(message, param="model", code=error_codes.SOURCE_UNAVAILABLE)


def _without(text: str, secret: str | None) -> str:
    return text.replace(secret, "[…]") if secret else text


BESIDE_WEIGHTS = 512 << 20
"""Bytes that an adapter's other files (tokenizer, templates, what a source writes meanwhile) may have."""


class FetchSlots:
    """Places for `count` fetches; one that has run for `seconds` goes on without, so that slow ones block no others."""

    def __init__(self, count: int, seconds: float) -> None:
        self._semaphore = asyncio.Semaphore(count)
        self._seconds = seconds

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Inside, the caller has a place, or had one."""
        await self._semaphore.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._semaphore.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()


async def watched(name: str, fetch: Awaitable[T], into: Path, limits: LoadLimits) -> T:
    """The result of `fetch`, which writes the adapter called `name` to `into`.

    Raises AdapterRefused when it has written too much, and Unavailable when it has begun and brings too little.
    """
    task = asyncio.ensure_future(fetch)
    size, since = 0, time.monotonic()
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=limits.watch_seconds)
            now, written = time.monotonic(), await asyncio.to_thread(tree_size, into)
            if written > limits.largest_adapter + BESIDE_WEIGHTS:
                raise AdapterRefused(f"{name} is larger than any adapter that this server could load", param="model")
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
    """Bytes of the files below `directory`, as far as they can be seen."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
