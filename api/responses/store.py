"""Stored responses: one table; what is stored is seen by its owner alone, and goes after 30 days."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from motet.api.database import Database
from motet.api.responses.objects import ResponseError, ResponseObject
from motet.core.errors import InvalidRequest, NotFound

KEPT_SECONDS = 30 * 24 * 3600
STALE_SECONDS = 30.0
"""A response in the background whose server has not been heard of for this long will not be finished."""

MAX_STORED_BYTES = 8 << 20
MAX_CHAIN = 256
RUNNING = ("queued", "in_progress")

_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, alive REAL NOT NULL,
    status TEXT NOT NULL, previous TEXT, response BLOB NOT NULL, input BLOB NOT NULL
)"""


@dataclass(frozen=True)
class Stored:
    """A response and the items that were its own input."""

    response: ResponseObject
    items: list[dict[str, Any]]


class ResponseStore:
    """The responses of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, owner: str, stored: Stored) -> None:
        """Keep a new response. Raises InvalidRequest if it is too large, PayloadTooLarge if there is no room."""
        response, items = msgspec.json.encode(stored.response), msgspec.json.encode(stored.items)
        if len(response) + len(items) > MAX_STORED_BYTES:
            raise InvalidRequest(
                f"a stored response has at most {MAX_STORED_BYTES} bytes; set store to false", param="store"
            )
        now, kept = time.time(), stored.response

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_TABLE)
            connection.execute("DELETE FROM responses WHERE created < ?", (now - KEPT_SECONDS,))
            self._database.check_room(connection, len(response) + len(items), "store")
            connection.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (kept.id, owner, now, now, kept.status, kept.previous_response_id, response, items),
            )

        await self._database.run(work)

    async def update(self, response: ResponseObject) -> bool:
        """Keep what has become of a response that is being made; False if it has ended, or is gone."""
        content = msgspec.json.encode(response)

        def work(connection: sqlite3.Connection) -> bool:
            found = connection.execute(
                "UPDATE responses SET alive = ?, status = ?, response = ? "
                "WHERE id = ? AND status IN ('queued', 'in_progress')",
                (time.time(), response.status, content, response.id),
            )
            return found.rowcount == 1

        return await self._database.run(work)

    async def alive(self, id: str) -> bool:
        """Note that a response in the background is still being made; False if it was cancelled or deleted."""

        def work(connection: sqlite3.Connection) -> bool:
            found = connection.execute(
                "UPDATE responses SET alive = ? WHERE id = ? AND status IN ('queued', 'in_progress')", (time.time(), id)
            )
            return found.rowcount == 1

        return await self._database.run(work)

    async def get(self, owner: str, id: str) -> Stored:
        """The response `id`. Raises NotFound if there is none, or it is somebody else's."""

        def work(connection: sqlite3.Connection) -> tuple[bytes, bytes, float] | None:
            connection.execute(_TABLE)
            query = "SELECT response, input, alive FROM responses WHERE id = ? AND owner = ?"
            row: tuple[bytes, bytes, float] | None = connection.execute(query, (id, owner)).fetchone()
            return row

        row = await self._database.run(work)
        if row is None:
            raise NotFound(f"there is no response {id[:80]!r}", param="response_id", code="not_found")
        response = msgspec.json.decode(row[0], type=ResponseObject)
        if response.status in RUNNING and time.time() - row[2] > STALE_SECONDS:
            error = ResponseError("server_error", "the server was restarted before the response was complete")
            response = msgspec.structs.replace(response, status="failed", error=error)
        return Stored(response, msgspec.json.decode(row[1]))

    async def delete(self, owner: str, id: str) -> None:
        """Forget the response `id`. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_TABLE)
            return connection.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner)).rowcount

        if not await self._database.run(work):
            raise NotFound(f"there is no response {id[:80]!r}", param="response_id", code="not_found")

    async def conversation(self, owner: str, id: str) -> list[dict[str, Any]]:
        """The items of the response `id`, of those before it, and what came out. Raises InvalidRequest, NotFound."""
        parts: list[list[dict[str, Any]]] = []
        previous: str | None = id
        while previous is not None:
            if len(parts) == MAX_CHAIN:
                raise InvalidRequest(f"a chain has at most {MAX_CHAIN} responses", param="previous_response_id")
            try:
                stored = await self.get(owner, previous)
            except NotFound:
                raise NotFound(
                    f"there is no response {previous[:80]!r} (any more)",
                    param="previous_response_id",
                    code="previous_response_not_found",
                ) from None
            if stored.response.status in RUNNING:
                raise InvalidRequest(
                    f"the response {previous[:80]!r} is not complete yet", param="previous_response_id"
                )
            # A call that was cut has no arguments that anybody could read.
            made = [i for i in stored.response.output if i.type != "function_call" or i.status != "incomplete"]
            parts.append([*stored.items, *(msgspec.to_builtins(item) for item in made)])
            previous = stored.response.previous_response_id
        return [item for part in reversed(parts) for item in part]
