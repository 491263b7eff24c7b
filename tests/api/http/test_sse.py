"""How events are framed, and how frames that have arrived together are joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from motet.api.http.sse import comment_frame, error_frame, event_frame
from motet.api.http.stream_response import joined
from motet.core.errors import InvalidRequest


def test_frames() -> None:
    assert event_frame({"a": "x\ny"}) == b'data: {"a":"x\\ny"}\n\n'
    assert event_frame({"a": 1}, "message_start") == b'event: message_start\ndata: {"a":1}\n\n'
    assert comment_frame("keep-alive") == b": keep-alive\n\n"
    assert error_frame(InvalidRequest("no").info()).startswith(b'data: {"error":{"message":"no"')


def test_frames_that_have_arrived_together_are_joined() -> None:
    async def frames() -> AsyncGenerator[tuple[bytes, bool], None]:
        for frame, more in ((b"a", True), (b"", True), (b"b", False), (b"", False), (b"c", False), (b"d", True)):
            yield frame, more

    async def read() -> list[bytes]:
        return [frame async for frame in joined(frames())]

    assert asyncio.run(read()) == [b"ab", b"c", b"d"]
