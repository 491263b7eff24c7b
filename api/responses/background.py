"""Generates responses in the background, and stores them and, if they stream, their events."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager

from loguru import logger
from msgspec.structs import replace

from motet.api.http.access_log import finish_record
from motet.api.http.errors import internal_error, note_failure
from motet.api.responses.generation import Event, ResponseGeneration, frame
from motet.api.responses.store import Frame, ResponseStore, StoredResponse
from motet.api.responses.stream import failed_response, failure_event
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import ErrorInfo, MotetError, Overloaded, Unavailable

BEAT_SECONDS = 5.0
WRITE_SECONDS = 0.1
"""Seconds for which events are collected before they are stored together."""

RETRY_SECONDS = (0.5, 2.0, 0.0)
"""Seconds to wait after each failed attempt to store a response."""

MAX_RUNNING = 256


class _BackgroundResponse:
    """A response in progress: its `generation`, and if it streams, the events that are not stored yet."""

    def __init__(self, generation: ResponseGeneration, streams: bool) -> None:
        self.record = generation.caller.record.detached()
        sequences = dataclasses.replace(generation.chat.generation, record=self.record)
        self.generation = dataclasses.replace(
            generation, chat=dataclasses.replace(generation.chat, generation=sequences)
        )
        self.streams = streams
        self.response = generation.response
        self.unstored: list[Frame] = []
        self.changed = asyncio.Event()
        self._count = 0

    def add_events(self, events: Sequence[Event]) -> None:
        """Queue the next events for storing."""
        if self.streams:
            self.unstored += [(self._count + i, frame(event, self._count + i)) for i, event in enumerate(events)]
            self._count += len(events)

    def stored(self, frames: Sequence[Frame]) -> None:
        """Remove the first events, `frames`, which are stored now."""
        del self.unstored[: len(frames)]
        self.changed.set()
        self.changed = asyncio.Event()


class Background:
    """The responses that this process generates in the background."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = ResponseStore(services.database)
        self._responses: dict[str, _BackgroundResponse] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved = 0

    @contextmanager
    def reserve_place(self) -> Iterator[None]:
        """Reserve a place for one more response; call `begin` within the block. Raises Overloaded if all are used."""
        if len(self._responses) + self._reserved >= MAX_RUNNING:
            raise Overloaded("too many responses are in progress in the background; try again later")
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    async def begin(self, generation: ResponseGeneration, streams: bool) -> None:
        """Store the response and start its generation. Raises InvalidRequest, PayloadTooLarge."""
        entry = _BackgroundResponse(generation, streams)
        entry.add_events([(f"response.{kind}", {"response": generation.response}) for kind in ("created", "queued")])
        frames = tuple(entry.unstored)
        await self._store.add(generation.caller.owner, StoredResponse(generation.response, generation.items), frames)
        entry.stored(frames)
        self._responses[generation.response.id] = entry
        task = asyncio.create_task(self._generate(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, id: str, seconds: float) -> None:
        """Wait until more events are stored if this process generates the response, at most `seconds`."""
        entry = self._responses.get(id)
        waiting = entry.changed.wait() if entry is not None else asyncio.Event().wait()
        try:
            await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            return

    async def _generate(self, entry: _BackgroundResponse) -> None:
        entry.response = replace(entry.response, status="in_progress")
        await self._store_state(entry)
        writing = asyncio.create_task(self._store_events(entry))
        try:
            async with self._services.drain.background_work(), aclosing(entry.generation.events()) as events:
                async for new_events, entry.response in events:
                    # `begin` has stored response.created.
                    entry.add_events([event for event in new_events if event[0] != "response.created"])
                    if writing.done():
                        writing.result()  # raises the error of storing
                        return  # it was cancelled or deleted by another process
        except MotetError as error:
            self._fail(entry, error.info())
        except Exception as error:
            self._fail(entry, internal_error(error))
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self._store_state(entry)
            self._responses.pop(entry.response.id, None)
            finish_record(entry.record, self._services.settings.access_log == "on")

    def _fail(self, entry: _BackgroundResponse, info: ErrorInfo) -> None:
        note_failure(info, entry.record)
        if info.code == error_codes.REQUEST_CANCELLED:
            entry.response = replace(entry.response, status="cancelled")
        else:
            entry.response = failed_response(entry.response, info)
            entry.add_events([failure_event(entry.response, info)])

    async def _store_state(self, entry: _BackgroundResponse) -> None:
        """Store the response and its events, unless it has ended in the store. Retries if the database is busy."""
        frames = tuple(entry.unstored)
        for seconds in RETRY_SECONDS:
            try:
                await self._store.update(entry.response, frames)
            except Exception as error:
                logger.error("response {} could not be stored: {}", entry.response.id, type(error).__name__)
                await asyncio.sleep(seconds)
            else:
                entry.stored(frames)
                return

    async def _store_events(self, entry: _BackgroundResponse) -> None:
        """Store events regularly and mark the response as in progress; return when it was cancelled or deleted.

        Raises PayloadTooLarge.
        """
        last_beat = 0.0
        while True:
            frames = tuple(entry.unstored)
            try:
                if frames or time.monotonic() - last_beat >= BEAT_SECONDS:
                    last_beat = time.monotonic()
                    if not await self._store.mark_in_progress(entry.response.id, frames):
                        return
                    entry.stored(frames)
            except (sqlite3.Error, Unavailable) as error:  # the next attempt may succeed
                logger.warning("response {} could not be marked as in progress: {}", entry.response.id, error)
            await asyncio.sleep(WRITE_SECONDS if entry.streams else BEAT_SECONDS)
