"""What one sequence has made and its reader has not taken yet, within limits: a reader that is too slow is cut off."""

from __future__ import annotations

import asyncio

from motet.core import error_codes
from motet.core.errors import MotetError, Overloaded
from motet.core.messages import TokenEvent

MAX_QUEUED_TOKENS = 4096
"""Tokens that may wait for a slow reader; then its sequence ends."""

MAX_QUEUED_BYTES = 32 << 20
"""Memory that the waiting tokens of all sequences of a request may take together."""

MAX_TOKENS_PER_READ = 64
"""Tokens that one reader gets at once where it fell behind; then others have their turn."""

TOKEN_BYTES = 300
TOP_BYTES = 120
"""Estimates of what a waiting token takes, and each of its `top` entries."""


class QueuedBytes:
    """The memory that the waiting tokens of one request take; its sequences share it."""

    def __init__(self) -> None:
        self.bytes = 0


class TokenQueue:
    """The tokens of one sequence that wait, and the error after them."""

    def __init__(self, lag: QueuedBytes) -> None:
        self._lag = lag
        self._queue: asyncio.Queue[TokenEvent | MotetError] = asyncio.Queue()
        self._bytes = 0

    def put(self, event: TokenEvent) -> bool:
        """Add a token. False if the reader is too slow: the sequence must end, and nothing more is to be added."""
        self._queue.put_nowait(event)
        self._count(_size(event))
        if event.finish is not None or (
            self._queue.qsize() <= MAX_QUEUED_TOKENS and self._lag.bytes <= MAX_QUEUED_BYTES
        ):
            return True
        self.fail(Overloaded("the answer was not read fast enough", code=error_codes.SLOW_READER))
        return False

    def fail(self, error: MotetError) -> None:
        """Add the error that ends the sequence."""
        self._queue.put_nowait(error)

    async def take(self) -> tuple[list[TokenEvent], MotetError | None]:
        """What has come, as soon as anything has: the tokens, at most MAX_TOKENS_PER_READ, and the error after them."""
        events: list[TokenEvent] = []
        item = await self._queue.get()
        while True:
            if isinstance(item, MotetError):
                return events, item
            events.append(item)
            self._count(-_size(item))
            if self._queue.empty() or len(events) == MAX_TOKENS_PER_READ:
                return events, None
            item = self._queue.get_nowait()

    def close(self) -> None:
        """The reader takes nothing more."""
        self._count(-self._bytes)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._lag.bytes += size


def _size(event: TokenEvent) -> int:
    return TOKEN_BYTES + TOP_BYTES * len(event.top)
