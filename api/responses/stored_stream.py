"""Streams the events of a background response from the store: those stored already, then new ones as they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from motet.api.responses.background import Background
from motet.api.responses.conversations import RUNNING
from motet.api.responses.generation import frame
from motet.api.responses.objects import ResponseError
from motet.api.responses.store import ResponseStore
from motet.api.responses.stream import failure_event
from motet.api.schema.openai_objects import error_body
from motet.core import error_codes
from motet.core.errors import ErrorInfo, InvalidRequest

POLL_SECONDS = 0.5
"""Seconds between looks at a response that another process generates."""

CANCELLED = ResponseError(error_codes.REQUEST_CANCELLED, "the response was cancelled")


class StoredStream:
    """One client's stream of the response `id`, from after the event number `after`."""

    def __init__(self, store: ResponseStore, background: Background, owner: str, id: str, after: int) -> None:
        self._store, self._background = store, background
        self._owner, self._id, self._after = owner, id, after

    async def check(self) -> None:
        """Raise NotFound if the response does not exist, InvalidRequest if it was not created with `stream`."""
        stored = await self._store.events(self._owner, self._id, self._after)
        if stored.last is None:
            raise InvalidRequest(
                "only a response created with background and stream can be streamed from the store",
                param="stream",
                code=error_codes.UNSUPPORTED_PARAMETER,
            )

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events, until the response has ended. Raises NotFound if it is deleted meanwhile."""
        yield b""  # sends the response's head at once, however long the next event takes
        while True:
            stored = await self._store.events(self._owner, self._id, self._after)
            if stored.frames:
                self._after = stored.frames[-1][0]
                yield b"".join(frame for _, frame in stored.frames)
            elif stored.status not in RUNNING or stored.stale:
                # A response that ended by itself has a last event; one that was cancelled or lost has none.
                if (stored.stale or stored.status == "cancelled") and self._after == stored.last:
                    yield await self._end_frame()
                return
            else:
                await self._background.wait(self._id, POLL_SECONDS)

    def failure(self, info: ErrorInfo) -> bytes:
        """The frame that ends the stream when reading it fails."""
        error = msgspec.to_builtins(error_body(info))["error"]
        fields = {name: error[name] for name in ("code", "message", "param")}  # `type` is the event's
        return frame(("error", {**fields, "error": error}), self._after + 1)

    async def _end_frame(self) -> bytes:
        """The last event of a response that was cancelled, or whose server ended."""
        response = (await self._store.get(self._owner, self._id)).response
        error = response.error or CANCELLED
        info = ErrorInfo(error.message, "invalid_request_error", error.code, 409)
        return frame(failure_event(response, info), self._after + 1)
