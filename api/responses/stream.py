"""A response as a stream of OpenAI's named events, also when it fails on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from motet.api.answers import error_body
from motet.api.errors import internal_error
from motet.api.responses.objects import ResponseError, ResponseObject
from motet.api.responses.run import Event, ResponseRun, frame
from motet.api.responses.store import ResponseStore, Stored
from motet.api.services import Services
from motet.core.errors import ErrorInfo, MotetError


class ResponseStream:
    """One stream; `keep` says whether the response is stored when it has ended."""

    def __init__(self, run: ResponseRun, services: Services, keep: bool) -> None:
        self._run, self._services, self._keep = run, services, keep
        self._response = run.response
        self._number = 0

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events. Raises MotetError; `failure` makes the event that tells of it."""
        # The first events are told when the first token is there: until then a failure gets a status of its own.
        held: bytes | None = b""
        try:
            async with aclosing(self._run.events(self._services)) as happenings:
                async for events, self._response in happenings:
                    frames = b"".join(frame(event, self._number + i) for i, event in enumerate(events))
                    self._number += len(events)
                    if held == b"":
                        held = frames
                        continue
                    if self._response.status != "in_progress":
                        await self._store(self._response)
                    yield (held or b"") + frames
                    held = None
        except MotetError as error:
            if held is None:
                await self._store(failed_response(self._response, error.info()))
            raise
        except Exception as error:
            info = internal_error(error)
            if held is None:
                await self._store(failed_response(self._response, info))
            raise MotetError(info.message) from None

    def failure(self, info: ErrorInfo) -> bytes:
        """response.failed, as a frame."""
        return frame(failure_event(failed_response(self._response, info), info), self._number)

    async def _store(self, response: ResponseObject) -> None:
        if self._keep:
            stored = Stored(response, self._run.items)
            await ResponseStore(self._services.database).add(self._run.caller.owner, stored)


def failed_response(response: ResponseObject, info: ErrorInfo) -> ResponseObject:
    """The response, which failed for that reason."""
    return replace(response, status="failed", error=ResponseError(info.code, info.message))


def failure_event(response: ResponseObject, info: ErrorInfo) -> Event:
    """response.failed; the error stands beside the response, too, where both SDKs look for one to raise."""
    error = msgspec.to_builtins(error_body(info))["error"]
    return "response.failed", {"response": response, "error": error}
