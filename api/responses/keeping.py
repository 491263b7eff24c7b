"""A streamed response in the store: there while it is made, and as it has ended."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress

from loguru import logger

from motet.api.responses.objects import ResponseObject
from motet.api.responses.store import MAX_STORED_BYTES, ResponseStore, Stored
from motet.core.errors import NotFound

BEAT_SECONDS = 10.0
"""How often it is noted that a response is still being made."""


class Keeping:
    """One response. It is being stored from now on, beside whatever else goes on; `end` has to be called."""

    def __init__(self, store: ResponseStore, owner: str, stored: Stored) -> None:
        self._store, self._owner, self._id = store, owner, stored.response.id
        self._adding = asyncio.create_task(store.add(owner, stored))
        self._beating: asyncio.Task[None] | None = None

    async def begun(self) -> None:
        """Wait until it is stored. Raises InvalidRequest, PayloadTooLarge."""
        await self._adding
        self._beating = asyncio.create_task(self._beat())

    async def end(self, response: ResponseObject | None) -> None:
        """Store what has become of it; None: nobody has heard of it, and it is gone. Raises InvalidRequest."""
        if self._beating is not None:
            self._beating.cancel()
        if response is not None:
            await self._store.update(response, most=MAX_STORED_BYTES)
        else:
            await asyncio.gather(self._adding, return_exceptions=True)
            with suppress(NotFound):
                await self._store.delete(self._owner, self._id)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._store.alive(self._id)
            except sqlite3.Error as error:  # it may work the next time
                logger.warning("response {} could not be marked: {}", self._id, error)
