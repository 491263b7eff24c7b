"""The stream of a response in the background: what is stored of its events, and what comes, to whoever asks for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from motet.api.responses.background import Background
from motet.api.responses.conversations import RUNNING
from motet.api.responses.objects import ResponseError
from motet.api.responses.run import frame
from motet.api.responses.store import ResponseStore
from motet.api.responses.stream import failure_event
from motet.api.schema.openai_objects import error_body
from motet.core import error_codes
from motet.core.errors import ErrorInfo, InvalidRequest

POLL_SECONDS = 0.5
"""Between looks at a response that another process makes."""

CANCELLED = ResponseError(error_codes.REQUEST_CANCELLED, "the response was cancelled")


class Replay:
    """One reader's stream of the response `id`, from after the event number `after`."""

    def __init__(self, store: ResponseStore, background: Background, owner: str, id: str, after: int) -> None:
        self._store, self._background = store, background
        self._owner, self._id, self._after = owner, id, after

    async def check(self) -> None:
        """Raise NotFound if there is no such response, InvalidRequest if it was not made to be streamed."""
        told = await self._store.events(self._owner, self._id, self._after)
        if told.last is None:
            raise InvalidRequest(
                "only a response that was made with background and stream can be streamed from the store",
                param="stream",
                code=error_codes.UNSUPPORTED_PARAMETER,
            )

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events, until the response has ended. Raises NotFound if it is deleted meanwhile."""
        yield b""  # there is nothing left to refuse: the head goes out however long the next event takes
        while True:
            told = await self._store.events(self._owner, self._id, self._after)
            if told.frames:
                self._after = told.frames[-1][0]
                yield b"".join(frame for _, frame in told.frames)
            elif told.status not in RUNNING or told.stale:
                # What ended by itself has said so; what was cancelled or lost could not.
                if (told.stale or told.status == "cancelled") and self._after == told.last:
                    yield await self._cut()
                return
            else:
                await self._background.wait(self._id, POLL_SECONDS)

    def failure(self, info: ErrorInfo) -> bytes:
        """The frame that ends the stream when it could not be read to its end."""
        error = msgspec.to_builtins(error_body(info))["error"]
        said = {name: error[name] for name in ("code", "message", "param")}  # `type` is the event's
        return frame(("error", {**said, "error": error}), self._after + 1)

    async def _cut(self) -> bytes:
        """The end of a response that was cancelled, or whose server was lost."""
        response = (await self._store.get(self._owner, self._id)).response
        error = response.error or CANCELLED
        info = ErrorInfo(error.message, "invalid_request_error", error.code, 409)
        return frame(failure_event(response, info), self._after + 1)
