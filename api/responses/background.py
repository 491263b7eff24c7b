"""Responses that are made without anybody waiting, and kept as they are when they are complete."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from loguru import logger
from msgspec.structs import replace

from motet.api.errors import internal_error
from motet.api.responses.objects import ResponseError, ResponseObject
from motet.api.responses.run import ResponseRun
from motet.api.responses.store import ResponseStore
from motet.api.services import Services
from motet.core.errors import MotetError, Overloaded

BEAT_SECONDS = 5.0
MAX_RUNNING = 256


class Background:
    """The responses of this process that are being made in the background."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = ResponseStore(services.database)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._coming = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one more, to be started inside. Raises Overloaded if there is none."""
        if len(self._tasks) + self._coming >= MAX_RUNNING:
            raise Overloaded("too many responses are being made in the background; try again later")
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def start(self, run: ResponseRun) -> None:
        """Make the response; it is stored already."""
        id = run.response.id
        self._tasks[id] = task = asyncio.create_task(self._make(run))
        task.add_done_callback(lambda _: self._tasks.pop(id, None))

    async def _make(self, run: ResponseRun) -> None:
        response = replace(run.response, status="in_progress")
        await self._keep(response)
        beat = asyncio.create_task(self._beat(run.response.id))
        try:
            async with self._services.drain.work(), aclosing(run.events(self._services)) as events:
                async for _, latest in events:
                    response = latest
                    if beat.done():  # it was cancelled or deleted by another process
                        return
            await self._keep(response)
        except MotetError as error:
            await self._keep(_failed(response, error.code, error.message))
        except Exception as error:
            info = internal_error(error)
            await self._keep(_failed(response, info.code, info.message))
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    async def _keep(self, response: ResponseObject) -> None:
        try:
            await self._store.update(response)
        except Exception as error:
            logger.error("response {} could not be stored: {}", response.id, type(error).__name__)

    async def _beat(self, id: str) -> None:
        """Show that the response is still being made; return once it is not wanted any more."""
        while True:
            try:
                if not await self._store.alive(id):
                    return
            except sqlite3.Error as error:  # it may work the next time
                logger.warning("response {} could not be marked: {}", id, error)
            await asyncio.sleep(BEAT_SECONDS)


def _failed(response: ResponseObject, code: str, message: str) -> ResponseObject:
    if code == "request_cancelled":
        return replace(response, status="cancelled")
    return replace(response, status="failed", error=ResponseError(code, message))
