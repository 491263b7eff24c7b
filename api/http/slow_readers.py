"""Clients that do not read what they get: how long the server tries to send before it closes their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

SEND_SECONDS = 60.0
SEND_BYTES = 16 << 10
"""While data waits to be sent, a client must take this much of it every SEND_SECONDS."""


@asynccontextmanager
async def send_timeout(unsent: Callable[[], int]) -> AsyncIterator[None]:
    """Code that sends. Raises TimeoutError if the client takes too little of the `unsent()` bytes meanwhile."""
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
