"""Stores batches in the database: their state, their runner's lease, and the result of each finished line."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from motet.api.batches.objects import BatchObject, RequestCounts
from motet.api.batches.status import ACTIVE
from motet.api.storage.database import Database
from motet.api.storage.paging import Page, page_rows
from motet.api.storage.usage import Counted, count_by_owner
from motet.core import error_codes
from motet.core.errors import NotFound

LEASE_SECONDS = 20.0
"""A runner that does not renew its lease for this long loses its batches to the next one."""

PAGE_BYTES = 4 << 20
"""Bytes of results that are read at once; the last result of a page may exceed it."""

_TABLES = (
    """CREATE TABLE IF NOT EXISTS batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
        status TEXT NOT NULL, batch BLOB NOT NULL, runner TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE IF NOT EXISTS batch_results (
        batch TEXT NOT NULL, line INTEGER NOT NULL, failed INTEGER NOT NULL, result BLOB NOT NULL,
        PRIMARY KEY (batch, line)
    ) WITHOUT ROWID""",
)
_COUNTED = (
    Counted("batches", "LENGTH({row}.batch)"),
    Counted("batch_results", "LENGTH({row}.result)", "(SELECT owner FROM batches WHERE id = {row}.batch)"),
)
T = TypeVar("T")


@dataclass(frozen=True)
class Claimed:
    """A batch that this runner may run, and its owner."""

    batch: BatchObject
    owner: str


class BatchStore:
    """The batches of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, owner: str, batch: BatchObject) -> None:
        """Store a new batch. Raises PayloadTooLarge if there is no room."""
        content = msgspec.json.encode(batch)

        def work(connection: sqlite3.Connection) -> None:
            self._database.check_room(connection, len(content), "input_file_id", owner)
            connection.execute(
                "INSERT INTO batches (id, owner, status, batch) VALUES (?, ?, ?, ?)",
                (batch.id, owner, batch.status, content),
            )

        await self._run(work, stores=True)

    async def get(self, owner: str, id: str) -> BatchObject:
        """The batch `id` with its current counts. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> BatchObject:
            return _counted(connection, _get(connection, owner, id))

        return await self._run(work)

    async def list(self, owner: str, page: Page) -> tuple[list[BatchObject], bool]:
        """A page of the owner's batches, and whether more follow. Raises InvalidRequest."""

        def work(connection: sqlite3.Connection) -> tuple[list[BatchObject], bool]:
            rows, more = page_rows(connection, ("batch", "batches"), page, {"owner": owner})
            return [_counted(connection, msgspec.json.decode(row, type=BatchObject)) for row in rows], more

        return await self._run(work)

    async def change(self, owner: str, id: str, change: Callable[[BatchObject], BatchObject]) -> BatchObject:
        """Change a batch in one transaction; if `change` raises, the batch is unchanged. Raises NotFound.

        The results of a batch that has ended are deleted: its output files contain them, and the batch their counts.
        """

        def work(connection: sqlite3.Connection) -> BatchObject:
            batch = change(_counted(connection, _get(connection, owner, id)))
            connection.execute(
                "UPDATE batches SET status = ?, batch = ? WHERE id = ?", (batch.status, msgspec.json.encode(batch), id)
            )
            if batch.status not in ACTIVE:
                connection.execute("DELETE FROM batch_results WHERE batch = ?", (id,))
            return batch

        return await self._run(work)

    async def claim(self, runner: str, running_by_owner: Mapping[str, int]) -> Claimed | None:
        """Claim an active batch that no runner has; it belongs to `runner` from now on.

        Chooses the owner with the fewest entries in `running_by_owner`, and of that owner's batches the one whose lease
        ended first: new batches come first, the oldest of them before the others.
        """

        def work(connection: sqlite3.Connection) -> Claimed | None:
            rows = _claimable(connection)
            if not rows:
                return None
            id, owner = min(rows, key=lambda row: running_by_owner.get(row[1], 0))
            lease = time.time() + LEASE_SECONDS
            connection.execute("UPDATE batches SET runner = ?, lease = ? WHERE id = ?", (runner, lease, id))
            return Claimed(_get(connection, owner, id), owner)

        return await self._run(work)

    async def waiting_owners(self) -> set[str]:
        """The owners of active batches that no runner has."""
        return await self._run(lambda connection: {owner for _, owner in _claimable(connection)})

    async def renew(self, runner: str, id: str) -> str | None:
        """Renew the lease on a batch; returns its status, or None if another runner has it now."""

        def work(connection: sqlite3.Connection) -> str | None:
            renewed = connection.execute(
                "UPDATE batches SET lease = ? WHERE id = ? AND runner = ?", (time.time() + LEASE_SECONDS, id, runner)
            )
            if not renewed.rowcount:
                return None
            status: str = connection.execute("SELECT status FROM batches WHERE id = ?", (id,)).fetchone()[0]
            return status

        return await self._run(work)

    async def put_back(self, runner: str, id: str, seconds: float) -> None:
        """Release a batch; no runner may claim it for `seconds`."""
        await self._run(
            lambda connection: connection.execute(
                "UPDATE batches SET lease = ?, runner = '' WHERE id = ? AND runner = ?",
                (time.time() + seconds, id, runner),
            )
        )

    async def release(self, runner: str) -> None:
        """Release the runner's batches at once, so that the next runner does not wait for the lease to end."""
        await self._run(
            lambda connection: connection.execute("UPDATE batches SET lease = 0 WHERE runner = ?", (runner,))
        )

    async def finished_lines(self, id: str) -> set[int]:
        """The numbers of the lines that have a result."""

        def work(connection: sqlite3.Connection) -> set[int]:
            rows = connection.execute("SELECT line FROM batch_results WHERE batch = ?", (id,)).fetchall()
            return {row[0] for row in rows}

        return await self._run(work)

    async def add_result(self, id: str, line: int, failed: bool, result: bytes, checked: bool = False) -> None:
        """Store a line's result, unless it has one already or the batch is ending or has ended.

        If `checked`, raises PayloadTooLarge if there is no room for it.
        """

        def work(connection: sqlite3.Connection) -> None:
            if checked:  # twice: once in the database, once in the output file
                owner = connection.execute("SELECT owner FROM batches WHERE id = ?", (id,)).fetchone()[0]
                self._database.check_room(connection, 2 * len(result), "input_file_id", owner)
            connection.execute(
                "INSERT OR IGNORE INTO batch_results SELECT id, ?, ?, ? FROM batches "
                "WHERE id = ? AND status IN ('in_progress', 'cancelling')",
                (line, failed, result, id),
            )

        await self._run(work, stores=True)

    async def results(self, id: str, failed: bool) -> AsyncIterator[tuple[bytes, ...]]:
        """The results of the lines that failed or did not, in the input's order, in pages of PAGE_BYTES."""
        query = "SELECT line, result FROM batch_results WHERE batch = ? AND failed = ? AND line > ? ORDER BY line"
        last = 0

        def work(connection: sqlite3.Connection) -> Sequence[tuple[int, bytes]]:
            page, size = [], 0
            for line, result in connection.execute(query, (id, failed, last)):
                page.append((line, result))
                size += len(result)
                if size >= PAGE_BYTES:
                    break
            return page

        while page := await self._run(work):
            yield tuple(result for _, result in page)
            last = page[-1][0]

    async def _run(self, work: Callable[[sqlite3.Connection], T], stores: bool = False) -> T:
        def prepared(connection: sqlite3.Connection) -> T:
            for table in _TABLES:
                connection.execute(table)
            for counted in _COUNTED:
                count_by_owner(connection, counted)
            return work(connection)

        return await self._database.run(prepared, stores)


def _claimable(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """(id, owner) of the active batches that no runner has."""
    marks = ", ".join("?" * len(ACTIVE))
    query = f"SELECT id, owner FROM batches WHERE status IN ({marks}) AND lease < ? ORDER BY lease, number"
    return connection.execute(query, (*ACTIVE, time.time())).fetchall()


def _get(connection: sqlite3.Connection, owner: str, id: str) -> BatchObject:
    row = connection.execute("SELECT batch FROM batches WHERE id = ? AND owner = ?", (id, owner)).fetchone()
    if row is None:
        raise NotFound(f"there is no batch {id[:80]!r}", param="batch_id", code=error_codes.NOT_FOUND)
    return msgspec.json.decode(row[0], type=BatchObject)


def _counted(connection: sqlite3.Connection, batch: BatchObject) -> BatchObject:
    """The batch with its counts: from the stored results while it is active, its own once it has ended."""
    if batch.status not in ACTIVE:
        return batch
    query = "SELECT COUNT(*), COALESCE(SUM(failed), 0) FROM batch_results WHERE batch = ?"
    count, failed = connection.execute(query, (batch.id,)).fetchone()
    return replace(batch, request_counts=RequestCounts(batch.request_counts.total, count - failed, failed))
