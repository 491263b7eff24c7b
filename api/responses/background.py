"""Responses that are made without anybody waiting, kept when they are complete; their events, too, if they stream."""

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
from motet.api.responses.run import Event, ResponseGeneration, frame
from motet.api.responses.store import Frame, ResponseStore, Stored
from motet.api.responses.stream import failed_response, failure_event
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import ErrorInfo, MotetError, Overloaded, Unavailable

BEAT_SECONDS = 5.0
WRITE_SECONDS = 0.1
"""How long events are gathered before they are stored, all in one go."""

KEEP_AGAIN_SECONDS = (0.5, 2.0, 0.0)
"""How long to wait after each time that a response could not be stored."""

MAX_RUNNING = 256


class _Making:
    """A response that is being made; its `run`, and if it streams, the events that are not stored yet."""

    def __init__(self, run: ResponseGeneration, streams: bool) -> None:
        generation = dataclasses.replace(run.chat.generation, record=run.caller.record.detached())
        self.run = dataclasses.replace(run, chat=dataclasses.replace(run.chat, generation=generation))
        self.record = generation.record
        self.streams = streams
        self.response = run.response
        self.unstored: list[Frame] = []
        self.changed = asyncio.Event()
        self._count = 0

    def tell(self, events: Sequence[Event]) -> None:
        """The next things that happened."""
        if self.streams:
            self.unstored += [(self._count + i, frame(event, self._count + i)) for i, event in enumerate(events)]
            self._count += len(events)

    def stored(self, frames: Sequence[Frame]) -> None:
        """The first of the events are stored, these."""
        del self.unstored[: len(frames)]
        self.changed.set()
        self.changed = asyncio.Event()


class Background:
    """The responses of this process that are being made in the background."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = ResponseStore(services.database)
        self._making: dict[str, _Making] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one more, to be begun inside. Raises Overloaded if there is none."""
        if len(self._making) + self._coming >= MAX_RUNNING:
            raise Overloaded("too many responses are being made in the background; try again later")
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def begin(self, run: ResponseGeneration, streams: bool) -> None:
        """Store the response, and let it be made by itself. Raises InvalidRequest, PayloadTooLarge."""
        making = _Making(run, streams)
        making.tell([(f"response.{kind}", {"response": run.response}) for kind in ("created", "queued")])
        frames = tuple(making.unstored)
        await self._store.add(run.caller.owner, Stored(run.response, run.items), frames)
        making.stored(frames)
        self._making[run.response.id] = making
        task = asyncio.create_task(self._make(making))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, id: str, seconds: float) -> None:
        """Until more of the response's events are stored, if it is made here; for `seconds` at the most."""
        making = self._making.get(id)
        waiting = making.changed.wait() if making is not None else asyncio.Event().wait()
        try:
            await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            return

    async def _make(self, making: _Making) -> None:
        making.response = replace(making.response, status="in_progress")
        await self._keep(making)
        writing = asyncio.create_task(self._write(making))
        try:
            async with self._services.drain.background_work(), aclosing(making.run.events()) as events:
                async for happened, making.response in events:
                    making.tell([event for event in happened if event[0] != "response.created"])  # it was told
                    if writing.done():
                        writing.result()  # raises what it could not store
                        return  # it was cancelled or deleted by another process
        except MotetError as error:
            self._fail(making, error.info())
        except Exception as error:
            self._fail(making, internal_error(error))
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self._keep(making)
            self._making.pop(making.response.id, None)
            finish_record(making.record, self._services.settings.access_log == "on")

    def _fail(self, making: _Making, info: ErrorInfo) -> None:
        note_failure(info, making.record)
        if info.code == error_codes.REQUEST_CANCELLED:
            making.response = replace(making.response, status="cancelled")
        else:
            making.response = failed_response(making.response, info)
            making.tell([failure_event(making.response, info)])

    async def _keep(self, making: _Making) -> None:
        """Store the response as it is, unless it has ended there, and its events; what is busy may not be soon."""
        frames = tuple(making.unstored)
        for seconds in KEEP_AGAIN_SECONDS:
            try:
                await self._store.update(making.response, frames)
            except Exception as error:
                logger.error("response {} could not be stored: {}", making.response.id, type(error).__name__)
                await asyncio.sleep(seconds)
            else:
                making.stored(frames)
                return

    async def _write(self, making: _Making) -> None:
        """Store events as they come, and show that the response is being made; return once it is not wanted any more.

        Raises PayloadTooLarge.
        """
        beat = 0.0
        while True:
            frames = tuple(making.unstored)
            try:
                if frames or time.monotonic() - beat >= BEAT_SECONDS:
                    beat = time.monotonic()
                    if not await self._store.alive(making.response.id, frames):
                        return
                    making.stored(frames)
            except (sqlite3.Error, Unavailable) as error:  # it may work the next time
                logger.warning("response {} could not be marked: {}", making.response.id, error)
            await asyncio.sleep(WRITE_SECONDS if making.streams else BEAT_SECONDS)
