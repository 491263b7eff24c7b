"""The send timeout: how slowly a client may read before the server closes its connection or stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

SEND_SECONDS = 60.0
SEND_BYTES = 16 << 10
"""While data is unsent, a client must read this many bytes every SEND_SECONDS."""


@asynccontextmanager
async def send_timeout(unsent: Callable[[], int]) -> AsyncIterator[None]:
    """Context of code that sends. Raises TimeoutError if `unsent()`, in bytes, decreases too slowly."""
    loop = asyncio.get_running_loop()
    before = unsent()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as scope:

        def check() -> None:
            nonlocal before, timer
            left = unsent()
            if before - left < SEND_BYTES:
                scope.reschedule(loop.time())
            else:
                before, timer = left, loop.call_later(SEND_SECONDS, check)

        timer = loop.call_later(SEND_SECONDS, check)
        try:
            yield
        finally:
            timer.cancel()
