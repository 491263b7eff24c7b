"""Stores responses, and the events of those that stream in the background, for 30 days; only owners see them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import msgspec

from motet.api.responses.conversations import TABLES, Item, conversation, is_stale, store_output, stored_items
from motet.api.responses.objects import ResponseError, ResponseObject, Status
from motet.api.storage.database import Database
from motet.api.storage.usage import Counted, count_by_owner
from motet.core import error_codes
from motet.core.errors import InvalidRequest, NotFound

RETENTION_SECONDS = 30 * 24 * 3600
MAX_STORED_BYTES = 8 << 20
MAX_FRAMES = 256
"""Events read at once."""

_TABLES = (
    """CREATE TABLE IF NOT EXISTS responses (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, alive REAL NOT NULL,
        status TEXT NOT NULL, previous TEXT, response BLOB NOT NULL, input BLOB NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS responses_by_age ON responses (created)",
    """CREATE TABLE IF NOT EXISTS response_events (
        response TEXT NOT NULL, number INTEGER NOT NULL, frame BLOB NOT NULL, PRIMARY KEY (response, number)
    ) WITHOUT ROWID""",
    # Before the response is deleted: the trigger that counts the events' bytes needs its owner.
    "DROP TRIGGER IF EXISTS response_gone",
    """CREATE TRIGGER IF NOT EXISTS response_leaves BEFORE DELETE ON responses BEGIN
        DELETE FROM response_events WHERE response = OLD.id;
    END""",
    *TABLES,
)
_COUNTED = (
    Counted("responses", "LENGTH({row}.response) + LENGTH({row}.input)"),
    Counted("response_events", "LENGTH({row}.frame)", "(SELECT owner FROM responses WHERE id = {row}.response)"),
)
LOST = ResponseError(error_codes.SERVER_ERROR, "the server was restarted before the response was complete")

T = TypeVar("T")
Frame: TypeAlias = tuple[int, bytes]
"""An event's `sequence_number`, and its bytes on the wire."""


@dataclass(frozen=True)
class StoredResponse:
    """A response and its own input items."""

    response: ResponseObject
    items: list[Item]


@dataclass(frozen=True)
class StoredEvents:
    """Some of a stored response's events, and the number of the last stored one; None without any."""

    frames: list[Frame]
    last: int | None
    status: Status
    stale: bool


class ResponseStore:
    """The responses of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check_room(self, owner: str, stored: StoredResponse) -> None:
        """Raise the error that `add` would raise now for lack of room, before the generation starts."""
        size = len(msgspec.json.encode(stored.response)) + len(msgspec.json.encode(stored.items))
        if size > MAX_STORED_BYTES:
            raise _too_large()
        await self._run(lambda connection: self._database.check_room(connection, size, "store", owner))

    async def add(self, owner: str, stored: StoredResponse, frames: Iterable[Frame] = ()) -> None:
        """Store a new response and its first events. Raises InvalidRequest if it is too large, PayloadTooLarge."""
        response, items = msgspec.json.encode(stored.response), msgspec.json.encode(stored.items)
        if len(response) + len(items) > MAX_STORED_BYTES:
            raise _too_large()
        now, new = time.time(), stored.response

        def work(connection: sqlite3.Connection) -> None:
            self._database.check_room(connection, len(response) + len(items), "store", owner)
            connection.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (new.id, owner, now, now, new.status, new.previous_response_id, response, items),
            )
            store_output(connection, new, [str(item["id"]) for item in stored.items])
            _add_frames(connection, new.id, frames)

        await self._run(work, stores=True)

    async def update(
        self, response: ResponseObject, frames: Iterable[Frame] = (), max_bytes: int | None = None
    ) -> bool:
        """Store the new state of a response in progress, and its next events.

        Returns False if it has ended or was deleted. Raises InvalidRequest if it has more than `max_bytes`.
        """
        content = msgspec.json.encode(response)
        if max_bytes is not None and len(content) > max_bytes:
            raise _too_large()

        def work(connection: sqlite3.Connection) -> bool:
            updated = connection.execute(
                "UPDATE responses SET alive = ?, status = ?, response = ? "
                "WHERE id = ? AND status IN ('queued', 'in_progress')",
                (time.time(), response.status, content, response.id),
            )
            if updated.rowcount == 1:
                store_output(connection, response)
                _add_frames(connection, response.id, frames)
            return updated.rowcount == 1

        return await self._run(work, stores=True)

    async def mark_in_progress(self, id: str, frames: Sequence[Frame] = ()) -> bool:
        """Mark a response as still in progress, and store its next events.

        Returns False if it was cancelled or deleted. Raises PayloadTooLarge if there is no room for the events.
        """

        def work(connection: sqlite3.Connection) -> bool:
            updated = connection.execute(
                "UPDATE responses SET alive = ? WHERE id = ? AND status IN ('queued', 'in_progress')", (time.time(), id)
            )
            if updated.rowcount == 1 and frames:
                owner = connection.execute("SELECT owner FROM responses WHERE id = ?", (id,)).fetchone()[0]
                self._database.check_room(connection, sum(len(frame) for _, frame in frames), "store", owner)
                _add_frames(connection, id, frames)
            return updated.rowcount == 1

        return await self._run(work, stores=True)

    async def events(self, owner: str, id: str, after: int) -> StoredEvents:
        """Events of the response `id` after number `after`. Raises NotFound as `get` does."""

        def work(connection: sqlite3.Connection) -> StoredEvents | None:
            query = "SELECT status, alive FROM responses WHERE id = ? AND owner = ?"
            row = connection.execute(query, (id, owner)).fetchone()
            if row is None:
                return None
            events = "FROM response_events WHERE response = ?"
            query = f"SELECT number, frame {events} AND number > ? ORDER BY number LIMIT ?"
            frames = connection.execute(query, (id, after, MAX_FRAMES)).fetchall()
            last = connection.execute(f"SELECT MAX(number) {events}", (id,)).fetchone()[0]
            return StoredEvents(frames, last, row[0], is_stale(*row))

        events = await self._run(work)
        if events is None:
            raise _not_found(id)
        return events

    async def get(self, owner: str, id: str) -> StoredResponse:
        """The response `id`. Raises NotFound if it does not exist or has another owner."""

        def work(connection: sqlite3.Connection) -> tuple[bytes, bytes, float] | None:
            query = "SELECT response, input, alive FROM responses WHERE id = ? AND owner = ?"
            row: tuple[bytes, bytes, float] | None = connection.execute(query, (id, owner)).fetchone()
            return row

        row = await self._run(work)
        if row is None:
            raise _not_found(id)
        response = msgspec.json.decode(row[0], type=ResponseObject)
        if is_stale(response.status, row[2]):
            response = msgspec.structs.replace(response, status="failed", error=LOST)
        return StoredResponse(response, msgspec.json.decode(row[1]))

    async def delete(self, owner: str, id: str) -> None:
        """Delete the response `id`. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner)).rowcount

        if not await self._run(work):
            raise _not_found(id)

    async def conversation(self, owner: str, id: str) -> list[Item]:
        """The input and output items of the response `id` and of those before it. Raises InvalidRequest, NotFound."""
        return await self._run(lambda connection: conversation(connection, owner, id))

    async def items(self, owner: str, field_of_id: Mapping[str, str]) -> dict[str, Item]:
        """The stored items, by id; `field_of_id` has the request field of each. Raises as `stored_items`."""
        return await self._run(lambda connection: stored_items(connection, owner, field_of_id))

    async def _run(self, work: Callable[[sqlite3.Connection], T], stores: bool = False) -> T:
        def with_tables(connection: sqlite3.Connection) -> T:
            for table in _TABLES:
                connection.execute(table)
            for counted in _COUNTED:
                count_by_owner(connection, counted)
            connection.execute("DELETE FROM responses WHERE created < ?", (time.time() - RETENTION_SECONDS,))
            return work(connection)

        return await self._database.run(with_tables, stores)


def _add_frames(connection: sqlite3.Connection, id: str, frames: Iterable[Frame]) -> None:
    # An existing row is the same: the database had stored it after its writer stopped waiting.
    connection.executemany(
        "INSERT OR IGNORE INTO response_events VALUES (?, ?, ?)", [(id, number, frame) for number, frame in frames]
    )


def _too_large() -> InvalidRequest:
    return InvalidRequest(f"a stored response has at most {MAX_STORED_BYTES} bytes; set store to false", param="store")


def _not_found(id: str) -> NotFound:
    return NotFound(f"there is no response {id[:80]!r}", param="response_id", code=error_codes.NOT_FOUND)
