"""Server-sent events: frames, the [DONE] mark, the response that carries them, and errors in mid-stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeAlias

import msgspec
from quart import Response

from motet.api.http.drain import Drain
from motet.api.http.errors import internal_error, note_failure
from motet.api.metrics.request_record import RequestRecord, current_record
from motet.api.schema.objects import ENCODER, error_body
from motet.core.errors import ErrorInfo, MotetError

DONE = b"data: [DONE]\n\n"
EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
"""The content types of streams: events, or JSON lines."""


def event(data: msgspec.Struct) -> bytes:
    """One frame. JSON has no raw line ends, so one `data:` line always holds it."""
    return b"data: " + ENCODER.encode(data) + b"\n\n"


def error_event(info: ErrorInfo) -> bytes:
    """The frame that ends a stream whose request failed; no [DONE] follows it."""
    return event(error_body(info))


ErrorFrame: TypeAlias = Callable[[ErrorInfo], bytes]


async def guarded(
    first: bytes,
    events: AsyncGenerator[bytes, None],
    drain: Drain,
    failed: ErrorFrame = error_event,
    record: RequestRecord | None = None,
) -> AsyncIterator[bytes]:
    """`first` and `events`, ended by an error event if they fail or the server stops; closed if nobody reads on."""
    record = record or RequestRecord()
    async with aclosing(events):
        try:
            async with drain.interruptible():
                yield first
                async for frame in events:
                    yield frame
        except MotetError as error:
            note_failure(error.info(), record)
            yield failed(error.info())
        except Exception as error:
            info = internal_error(error)
            record.failure = info.code
            yield failed(info)
        record.complete = True


async def stream_response(
    events: AsyncGenerator[bytes, None], drain: Drain, failed: ErrorFrame = error_event, content_type: str = EVENTS
) -> Response:
    """The response that sends `events` as they come, once the first is there; `failed` makes the event of a failure.

    Raises what fails before that, so that it is answered with its own status.
    """
    first = await anext(events, b"")
    frames = guarded(first, events, drain, failed, current_record())
    response = Response(frames, content_type=content_type)
    response.headers["cache-control"] = "no-store"
    response.headers["x-accel-buffering"] = "no"
    response.timeout = None  # the framework would cut the stream silently after 60 s
    return response
