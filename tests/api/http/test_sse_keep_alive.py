"""Comments in silent event streams, so that proxies keep the connection."""

from __future__ import annotations

import asyncio
from typing import Any

from motet.api.http.sse_keep_alive import COMMENT, with_keep_alive


async def stream_of(pauses: list[float], seconds: float, kind: bytes = b"text/event-stream") -> list[bytes]:
    """The bodies that a client gets from an app which sends a frame after each pause."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for pause in pauses:
            await asyncio.sleep(pause)
            await send({"type": "http.response.body", "body": b"frame", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    sent: list[bytes] = []
    busy = False

    async def send(message: Any) -> None:
        nonlocal busy
        assert not busy, "two at once"
        busy = True
        await asyncio.sleep(0.001)
        busy = False
        sent.append(message.get("body", b"start"))

    await with_keep_alive(app, seconds)({"type": "http"}, None, send)  # type: ignore[arg-type, typeddict-item]
    await asyncio.sleep(2 * seconds)
    return sent


def test_a_silent_stream_says_that_it_lives() -> None:
    sent = asyncio.run(stream_of([0.0, 0.5, 0.01, 0.01], 0.1))
    assert sent[:2] == [b"start", b"frame"]
    assert 3 <= sent.count(COMMENT) <= 5
    assert [body for body in sent if body != COMMENT] == [b"start", *[b"frame"] * 4, b""]
    assert sent[-3:] == [b"frame", b"frame", b""]


def test_nothing_else_gets_comments() -> None:
    assert COMMENT not in asyncio.run(stream_of([0.3], 0.05, b"application/json"))
