"""Stores a streamed response: at its start, in progress, and at its end."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import suppress

from loguru import logger

from motet.api.responses.objects import ResponseObject
from motet.api.responses.store import MAX_STORED_BYTES, ResponseStore, StoredResponse
from motet.core import error_codes
from motet.core.errors import MotetError, NotFound, PayloadTooLarge, Unavailable

BEAT_SECONDS = 10.0
"""Seconds between marks that a response is still in progress."""


async def stored_if_room(id: str, storing: Awaitable[object]) -> bool:
    """Wait for `storing` the response `id`. Returns False if there was no room: the answer is sent anyway."""
    try:
        await storing
    except (PayloadTooLarge, Unavailable) as error:
        if error.code != error_codes.STORAGE_FULL:
            raise
        logger.warning("response {} is not stored: {}", id, error.message)
        return False
    return True


class ResponseRetention:
    """One response. Storing starts at once, in the background; `end` must be called."""

    def __init__(self, store: ResponseStore, owner: str, stored: StoredResponse) -> None:
        self._store, self._owner, self._id = store, owner, stored.response.id
        self._adding = asyncio.create_task(store.add(owner, stored))
        self._beating: asyncio.Task[None] | None = None

    async def wait_stored(self) -> bool:
        """Wait until it is stored; False if the disk is full. Raises InvalidRequest, PayloadTooLarge."""
        try:
            await self._adding
        except Unavailable as error:
            logger.warning("response {} is not stored: {}", self._id, error.message)
            return False
        self._beating = asyncio.create_task(self._beat())
        return True

    async def end(self, response: ResponseObject | None) -> bool:
        """Store the final response, or delete it (None) if none of its events was sent. Raises InvalidRequest.

        Returns False if there is no room: then it is deleted too.
        """
        if self._beating is not None:
            self._beating.cancel()
        if response is not None:
            if await stored_if_room(self._id, self._store.update(response, max_bytes=MAX_STORED_BYTES)):
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
                await self._store.mark_in_progress(self._id)
            except (sqlite3.Error, Unavailable) as error:  # the next attempt may succeed
                logger.warning("response {} could not be marked as in progress: {}", self._id, error)
