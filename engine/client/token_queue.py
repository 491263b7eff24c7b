"""Queues the engine's tokens for each sequence's reader, and cuts off a reader that is too slow."""

from __future__ import annotations

import asyncio

from motet.core import error_codes
from motet.core.errors import MotetError, Overloaded
from motet.core.messages import TokenEvent

MAX_QUEUED_TOKENS = 4096
"""Tokens of one sequence that may wait for its reader; with more, the sequence ends."""

MAX_QUEUED_BYTES = 32 << 20
"""Memory that the waiting tokens of all sequences of a request may use together."""

MAX_TOKENS_PER_READ = 64
"""Tokens that a reader gets at once when it has fallen behind; then other readers have their turn."""

TOKEN_BYTES = 300
TOP_BYTES = 120
"""Estimated memory of a waiting token, and of each of its `top` entries."""


class QueuedBytes:
    """The memory that the waiting tokens of one request use; shared by its sequences."""

    def __init__(self) -> None:
        self.bytes = 0


class TokenQueue:
    """The waiting tokens of one sequence, and the error after them."""

    def __init__(self, request_bytes: QueuedBytes) -> None:
        self._request_bytes = request_bytes
        self._queue: asyncio.Queue[TokenEvent | MotetError] = asyncio.Queue()
        self._bytes = 0

    def put(self, event: TokenEvent) -> bool:
        """Add a token. Returns False if the reader is too slow: end the sequence and add nothing more."""
        self._queue.put_nowait(event)
        self._count(_size(event))
        within_limits = self._queue.qsize() <= MAX_QUEUED_TOKENS and self._request_bytes.bytes <= MAX_QUEUED_BYTES
        if event.finish is not None or within_limits:
            return True
        self.fail(Overloaded("the answer was not read fast enough", code=error_codes.SLOW_READER))
        return False

    def fail(self, error: MotetError) -> None:
        """Add the error that ends the sequence."""
        self._queue.put_nowait(error)

    async def take(self) -> tuple[list[TokenEvent], MotetError | None]:
        """Wait for the next tokens. Returns those that have arrived, at most MAX_TOKENS_PER_READ, and the error."""
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
        """Release the memory count; the reader takes nothing more."""
        self._count(-self._bytes)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._request_bytes.bytes += size


def _size(event: TokenEvent) -> int:
    return TOKEN_BYTES + TOP_BYTES * len(event.top)
