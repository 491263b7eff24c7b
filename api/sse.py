"""Server-sent events: frames, the [DONE] mark, the response that carries them, and errors in mid-stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from quart import Response

from motet.api.drain import Drain
from motet.api.errors import internal_error
from motet.api.responses import ENCODER, error_body
from motet.core.errors import ErrorInfo, MotetError

DONE = b"data: [DONE]\n\n"


def event(data: msgspec.Struct) -> bytes:
    """One frame. JSON has no raw line ends, so one `data:` line always holds it."""
    return b"data: " + ENCODER.encode(data) + b"\n\n"


def error_event(info: ErrorInfo) -> bytes:
    """The frame that ends a stream whose request failed; no [DONE] follows it."""
    return event(error_body(info))


async def guarded(events: AsyncGenerator[bytes, None], drain: Drain) -> AsyncIterator[bytes]:
    """`events`, ended by an error event if they fail or the server stops; closed when nobody reads any more."""
    async with aclosing(events):
        try:
            async with drain.interruptible():
                async for frame in events:
                    yield frame
        except MotetError as error:
            yield error_event(error.info())
        except Exception as error:
            yield error_event(internal_error(error))


def stream_response(events: AsyncGenerator[bytes, None], drain: Drain) -> Response:
    """The response that sends `events` as they come."""
    response = Response(guarded(events, drain), content_type="text/event-stream; charset=utf-8")
    response.headers["cache-control"] = "no-store"
    response.headers["x-accel-buffering"] = "no"
    response.timeout = None  # the framework would cut the stream silently after 60 s
    return response
