"""A streamed response in the store: there while it is made, and as it has ended."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import suppress

from loguru import logger

from motet.api.responses.objects import ResponseObject
from motet.api.responses.store import MAX_STORED_BYTES, ResponseStore, Stored
from motet.core import error_codes
from motet.core.errors import MotetError, NotFound, PayloadTooLarge, Unavailable

BEAT_SECONDS = 10.0
"""How often it is noted that a response is still being made."""


async def stored_if_room(id: str, storing: Awaitable[object]) -> bool:
    """Whether `storing` the response `id` found room; an answer that was made is sent in any case."""
    try:
        await storing
    except (PayloadTooLarge, Unavailable) as error:
        if error.code != error_codes.STORAGE_FULL:
            raise
        logger.warning("response {} is not stored: {}", id, error.message)
        return False
    return True


class Keeping:
    """One response. It is being stored from now on, beside whatever else goes on; `end` has to be called."""

    def __init__(self, store: ResponseStore, owner: str, stored: Stored) -> None:
        self._store, self._owner, self._id = store, owner, stored.response.id
        self._adding = asyncio.create_task(store.add(owner, stored))
        self._beating: asyncio.Task[None] | None = None

    async def begun(self) -> bool:
        """Wait until it is stored; False if the disk is full. Raises InvalidRequest, PayloadTooLarge."""
        try:
            await self._adding
        except Unavailable as error:
            logger.warning("response {} is not stored: {}", self._id, error.message)
            return False
        self._beating = asyncio.create_task(self._beat())
        return True

    async def end(self, response: ResponseObject | None) -> bool:
        """Store what has become of it; None: nobody has heard of it, and it is gone. Raises InvalidRequest.

        False if there is no room for it: then nothing is stored of it any more.
        """
        if self._beating is not None:
            self._beating.cancel()
        if response is not None:
            if await stored_if_room(self._id, self._store.update(response, most=MAX_STORED_BYTES)):
                return True
        else:
            await asyncio.gather(self._adding, return_exceptions=True)
        with suppress(MotetError if response is not None else NotFound):
            await self._store.delete(self._owner, self._id)
        return response is None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._store.alive(self._id)
            except (sqlite3.Error, Unavailable) as error:  # it may work the next time
                logger.warning("response {} could not be marked: {}", self._id, error)
