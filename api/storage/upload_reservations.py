"""Reserves room for uploads in progress by their announced length, and frees it when they end.

The reservations are in the database, so that they count for all API processes together. A reservation that is not
renewed, because its process died, expires.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from loguru import logger

from motet.api.storage.database import Database
from motet.core import error_codes
from motet.core.errors import Overloaded, Unavailable

MAX_UPLOADS = 32
MAX_UPLOADS_OF_OWNER = 8
LEASE_SECONDS = 30.0

_TABLE = """
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, bytes INTEGER NOT NULL, until REAL NOT NULL
) WITHOUT ROWID"""


class UploadReservations:
    """The reservations of uploads in progress in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def reserved(self, owner: str, size: int) -> AsyncIterator[str]:
        """Reserve room for an upload of `size` bytes while the block runs; yields the reservation's id.

        Raises PayloadTooLarge if there is no room, Overloaded if too many uploads are in progress.
        """
        id = uuid.uuid4().hex

        def reserve(connection: sqlite3.Connection) -> None:
            now = time.time()
            connection.execute(_TABLE)
            connection.execute("DELETE FROM uploads WHERE until < ?", (now,))
            query = "SELECT COUNT(*), COALESCE(SUM(owner = ?), 0) FROM uploads"
            total, of_owner = connection.execute(query, (owner,)).fetchone()
            if of_owner >= MAX_UPLOADS_OF_OWNER or total >= MAX_UPLOADS:
                who = (
                    f"you already have {of_owner}" if of_owner >= MAX_UPLOADS_OF_OWNER else f"there are already {total}"
                )
                message = f"{who} uploads in progress (the maximum); wait until one has ended"
                raise Overloaded(message, code=error_codes.TOO_MANY_UPLOADS)
            self._database.check_room(connection, size, "file", owner)
            connection.execute("INSERT INTO uploads VALUES (?, ?, ?, ?)", (id, owner, size, now + LEASE_SECONDS))

        def release(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM uploads WHERE id = ?", (id,))

        await self._database.run(reserve, stores=True)
        renewing = asyncio.create_task(self._renew(id))
        try:
            yield id
        finally:
            renewing.cancel()
            with suppress(sqlite3.Error, Unavailable):  # the reservation expires by itself
                await self._database.run(release)

    async def _renew(self, id: str) -> None:
        def renew(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE uploads SET until = ? WHERE id = ?", (time.time() + LEASE_SECONDS, id))

        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await self._database.run(renew)
            except (sqlite3.Error, Unavailable) as error:
                logger.warning("the reservation of an upload cannot be renewed: {}", error)


def active_reservations(connection: sqlite3.Connection) -> set[str]:
    """The ids of the reservations that have not expired."""
    connection.execute(_TABLE)
    return {row[0] for row in connection.execute("SELECT id FROM uploads WHERE until > ?", (time.time(),))}
