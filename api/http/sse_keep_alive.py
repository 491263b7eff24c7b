"""Sends comments on idle event streams, so that proxies and clients do not time out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from motet.api.http.sse import comment_frame

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

SECONDS = 15.0
COMMENT = comment_frame("keep-alive")


class _Stream:
    """One response. Each frame costs two assignments; a timer does the rest."""

    def __init__(self, send: ASGISendCallable, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._idle_since = self._loop.time()
        self._sending = False
        self._comment: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, message: ASGISendEvent) -> None:
        if self._comment is not None:  # frames never overlap
            await self._comment
        if message["type"] == "http.response.start" and _is_event_stream(message["headers"]):
            self._timer = self._loop.call_later(self._seconds, self._tick)
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.close()
        self._sending = True
        try:
            await self._send(message)
        finally:
            self._sending = False
            self._idle_since = self._loop.time()

    def close(self) -> None:
        """Stop sending comments."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        due = self._idle_since + self._seconds
        if self._sending or due > self._loop.time():
            due = max(due, self._loop.time() + self._seconds / 10)
            self._timer = self._loop.call_at(due, self._tick)
        else:
            self._timer = None
            self._comment = asyncio.create_task(self._send_comment())

    async def _send_comment(self) -> None:
        try:
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
        finally:
            self._comment = None
        self._idle_since = self._loop.time()
        self._timer = self._loop.call_later(self._seconds, self._tick)


def with_keep_alive(app: ASGIFramework, seconds: float = SECONDS) -> ASGIFramework:
    """Wrap `app`: its event streams send a comment after each `seconds` without data."""

    async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Any:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        stream = _Stream(send, seconds)
        try:
            return await app(scope, receive, stream.send)
        finally:
            stream.close()

    return asgi


def _is_event_stream(headers: Any) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
