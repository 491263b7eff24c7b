"""Streams a response as OpenAI's named events, including a failure in the middle."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec.structs import replace

from motet.api.http.errors import internal_error
from motet.api.responses.generation import Event, ResponseGeneration, frame
from motet.api.responses.objects import ResponseError, ResponseObject
from motet.api.responses.retention import ResponseRetention
from motet.api.responses.store import ResponseStore, StoredResponse
from motet.api.schema.openai_objects import error_body
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import ErrorInfo, MotetError, from_info

STOPPED = ResponseError(error_codes.SERVER_ERROR, "the server shut down before the answer was complete")


class ResponseStream:
    """One stream; `keep` says whether to store the response."""

    def __init__(self, generation: ResponseGeneration, services: Services, keep: bool) -> None:
        self._generation, self._services, self._keep = generation, services, keep
        self._response = generation.response
        self._number = 0
        self._retention: ResponseRetention | None = None
        self._stored = True  # False if storing failed

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events. Raises MotetError; `failure` makes the event for it."""
        # The first events are sent with the first token: a failure before it gets its own HTTP status.
        unsent: Sequence[Event] | None = None
        sent = False
        try:
            async with aclosing(self._generation.events()) as updates:
                async for events, response in updates:
                    if unsent is None:
                        unsent, self._response = events, response
                        self._store()
                        continue
                    if not sent and self._retention is not None and not await self._retention.wait_stored():
                        self._retention, self._stored = None, False
                    if response.status != "in_progress":
                        await self._end(response)
                    frames = self._frames([*unsent, *events])  # only now: events are sent after they are stored
                    sent, unsent = True, ()
                    yield frames
        except MotetError as error:
            await self._end(failed_response(self._response, error.info()) if sent else None)
            raise
        except Exception as error:
            info = internal_error(error)
            await self._end(failed_response(self._response, info) if sent else None)
            raise from_info(info) from None
        finally:  # the client has disconnected, or the server shuts down
            await self._end(self._interrupted_response() if sent else None)

    def failure(self, info: ErrorInfo) -> bytes:
        """response.failed, as a frame."""
        return frame(failure_event(failed_response(self._response, info), info), self._number)

    def _store(self) -> None:
        if self._keep:
            stored = StoredResponse(self._response, self._generation.items)
            store = ResponseStore(self._services.database)
            self._retention = ResponseRetention(store, self._generation.caller.owner, stored)

    def _frames(self, events: Sequence[Event]) -> bytes:
        """The next events as frames; `store` is false if the response could not be stored."""
        if not self._stored:
            events = [(kind, _without_store(data)) for kind, data in events]
        number, self._number = self._number, self._number + len(events)
        return b"".join(frame(event, number + i) for i, event in enumerate(events))

    async def _end(self, response: ResponseObject | None) -> None:
        """Store the end of the response, once; None: no event was sent."""
        retention = self._retention
        if retention is not None:
            self._stored = await retention.end(response)
            self._retention = None

    def _interrupted_response(self) -> ResponseObject:
        if self._services.drain.draining:
            return replace(self._response, status="failed", error=STOPPED)
        return replace(self._response, status="cancelled")


def _without_store(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "response": replace(data["response"], store=False)} if "response" in data else data


def failed_response(response: ResponseObject, info: ErrorInfo) -> ResponseObject:
    """The response as failed with that error."""
    return replace(response, status="failed", error=ResponseError(_code(info), info.message))


def _code(info: ErrorInfo) -> str:
    """One of the few codes that OpenAI has here."""
    if info.status == 429:
        return error_codes.RATE_LIMIT_EXCEEDED
    refused = 400 <= info.status < 500 and info.status != 409
    return error_codes.INVALID_PROMPT if refused else error_codes.SERVER_ERROR


def failure_event(response: ResponseObject, info: ErrorInfo) -> Event:
    """response.failed. The error is also beside the response, where both SDKs look for one to raise."""
    error = msgspec.to_builtins(error_body(info))["error"]
    return "response.failed", {"response": response, "error": error}
