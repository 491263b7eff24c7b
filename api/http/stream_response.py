"""Sends a stream of frames as a response: opens it with the first frame and ends it with an error frame if it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeAlias

from quart import Response

from motet.api.http.drain import Drain
from motet.api.http.errors import internal_error, note_failure
from motet.api.http.sse import EVENT_STREAM, error_frame
from motet.api.metrics.request_record import RequestRecord, current_record
from motet.core.errors import ErrorInfo, MotetError

ErrorFrame: TypeAlias = Callable[[ErrorInfo], bytes]

Frames: TypeAlias = AsyncGenerator[tuple[bytes, bool], None]
"""(frame, whether the next one has arrived too); a frame may be empty."""


async def stream_response(
    frames: AsyncGenerator[bytes, None],
    drain: Drain,
    failed: ErrorFrame = error_frame,
    content_type: str = EVENT_STREAM,
) -> Response:
    """The response that sends `frames` as they arrive, once the first has; `failed` makes the frame of a failure.

    Raises what fails before the first frame, so that it is answered with its own status.
    """
    first = await anext(frames, b"")
    sent = _guarded(first, frames, drain, failed, current_record())
    response = Response(sent, content_type=content_type)
    response.headers["cache-control"] = "no-store"
    response.headers["x-accel-buffering"] = "no"
    response.timeout = None  # the framework would cut the stream silently after 60 s
    return response


async def joined(frames: Frames) -> AsyncGenerator[bytes, None]:
    """The frames, joined where several have arrived together, so that each write to the socket carries all of them."""
    together = b""
    async with aclosing(frames):
        async for frame, more in frames:
            together += frame
            if together and not more:
                yield together
                together = b""
    if together:
        yield together


async def _guarded(
    first: bytes, frames: AsyncGenerator[bytes, None], drain: Drain, failed: ErrorFrame, record: RequestRecord
) -> AsyncIterator[bytes]:
    """`first` and `frames`, ended by an error frame if they fail or the server stops; closed if the client leaves."""
    async with aclosing(frames):
        try:
            async with drain.interruptible():
                yield first
                async for frame in frames:
                    yield frame
        except MotetError as error:
            note_failure(error.info(), record)
            yield failed(error.info())
        except Exception as error:
            info = internal_error(error)
            record.error_code = info.code
            yield failed(info)
        record.complete = True
