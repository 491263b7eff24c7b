"""A response as a stream of OpenAI's named events, also when it fails on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec.structs import replace

from motet.api.http.errors import internal_error
from motet.api.responses.objects import ResponseError, ResponseObject
from motet.api.responses.retention import Keeping
from motet.api.responses.run import Event, ResponseGeneration, frame
from motet.api.responses.store import ResponseStore, Stored
from motet.api.schema.openai_objects import error_body
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import ErrorInfo, MotetError, from_info

STOPPED = ResponseError(error_codes.SERVER_ERROR, "the server shut down before the answer was complete")


class ResponseStream:
    """One stream; `keep` says whether the response is stored."""

    def __init__(self, run: ResponseGeneration, services: Services, keep: bool) -> None:
        self._run, self._services, self._keep = run, services, keep
        self._response = run.response
        self._number = 0
        self._keeping: Keeping | None = None
        self._stored = True  # as far as it is to be

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events. Raises MotetError; `failure` makes the event that tells of it."""
        # The first events are told when the first token is there: until then a failure gets a status of its own.
        held: Sequence[Event] | None = None
        told = False
        try:
            async with aclosing(self._run.events()) as happenings:
                async for events, response in happenings:
                    if held is None:
                        held, self._response = events, response
                        self._store()
                        continue
                    if not told and self._keeping is not None and not await self._keeping.begun():
                        self._keeping, self._stored = None, False
                    if response.status != "in_progress":
                        await self._end(response)
                    frames = self._frames([*held, *events])  # not before: what cannot be stored is not told
                    told, held = True, ()
                    yield frames
        except MotetError as error:
            await self._end(failed_response(self._response, error.info()) if told else None)
            raise
        except Exception as error:
            info = internal_error(error)
            await self._end(failed_response(self._response, info) if told else None)
            raise from_info(info) from None
        finally:  # the reader has left, or the server stops
            await self._end(self._cut() if told else None)

    def failure(self, info: ErrorInfo) -> bytes:
        """response.failed, as a frame."""
        return frame(failure_event(failed_response(self._response, info), info), self._number)

    def _store(self) -> None:
        if self._keep:
            stored = Stored(self._response, self._run.items)
            store = ResponseStore(self._services.database)
            self._keeping = Keeping(store, self._run.caller.owner, stored)

    def _frames(self, events: Sequence[Event]) -> bytes:
        """The next events as frames; a response that could not be stored says so."""
        if not self._stored:
            events = [(kind, _unstored(data)) for kind, data in events]
        number, self._number = self._number, self._number + len(events)
        return b"".join(frame(event, number + i) for i, event in enumerate(events))

    async def _end(self, response: ResponseObject | None) -> None:
        """Store how it ended, once; None: before anything was told of it."""
        keeping = self._keeping
        if keeping is not None:
            self._stored = await keeping.end(response)
            self._keeping = None

    def _cut(self) -> ResponseObject:
        if self._services.drain.draining:
            return replace(self._response, status="failed", error=STOPPED)
        return replace(self._response, status="cancelled")


def _unstored(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "response": replace(data["response"], store=False)} if "response" in data else data


def failed_response(response: ResponseObject, info: ErrorInfo) -> ResponseObject:
    """The response, which failed for that reason."""
    return replace(response, status="failed", error=ResponseError(_code(info), info.message))


def _code(info: ErrorInfo) -> str:
    """OpenAI knows few codes here."""
    if info.status == 429:
        return error_codes.RATE_LIMIT_EXCEEDED
    refused = 400 <= info.status < 500 and info.status != 409
    return error_codes.INVALID_PROMPT if refused else error_codes.SERVER_ERROR


def failure_event(response: ResponseObject, info: ErrorInfo) -> Event:
    """response.failed; the error stands beside the response, too, where both SDKs look for one to raise."""
    error = msgspec.to_builtins(error_body(info))["error"]
    return "response.failed", {"response": response, "error": error}
