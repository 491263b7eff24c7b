"""The SQLite database for what users store: responses, files and batches.

Several API processes may use it at once: the journal is a write-ahead log, and writers wait for each other.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from motet.api.storage.data_directory import RESERVE, open_private
from motet.api.storage.disk_reserve import DiskReserve
from motet.api.storage.usage import used, used_by
from motet.core import error_codes
from motet.core.disk_space import disk_full_as_unavailable, is_disk_full
from motet.core.errors import PayloadTooLarge, StartupError

BUSY_SECONDS = 10.0

T = TypeVar("T")


class Database:
    """The file `motet.db` in `directory`, used by its own thread, so that the event loop never waits for it."""

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        """The file is opened, and `directory` made with access for its owner only, when first used.

        `limit` is the maximum size of the database and the files beside it together, in bytes.
        """
        self.directory = directory
        self._limit = limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._connection: sqlite3.Connection | None = None
        self._reserve = DiskReserve(directory / RESERVE)

    async def run(self, work: Callable[[sqlite3.Connection], T], stores: bool = False) -> T:
        """Run `work` in one transaction, rolled back if it raises; returns its result.

        Raises Unavailable if the disk is full. Work that `stores` nothing, such as deleting, may use the disk reserve.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, stores)

    def check_room(self, connection: sqlite3.Connection, size: int, param: str, owner: str = "") -> None:
        """Raise PayloadTooLarge for `param` if there is no room for `size` bytes; call it within `run`.

        An `owner` (an API key's name) may use half of the room that the others leave.
        """
        if self._limit is None:
            return
        advice = "delete files or responses first" + (", or set store to false" if param == "store" else "")
        total = used(connection)
        if total + size > self._limit:
            raise PayloadTooLarge(
                f"the server stores at most {self._limit} bytes (--max-files); {advice}",
                param=param,
                code=error_codes.STORAGE_FULL,
            )
        owner_bytes = used_by(connection, owner) if owner else 0
        share = (self._limit - max(total - owner_bytes, 0)) // 2
        if owner and owner_bytes + size > share:
            raise PayloadTooLarge(
                f"an API key may use half of the room that the others leave of --max-files, now {share} bytes; "
                f"yours uses {owner_bytes}; {advice}",
                param=param,
                code=error_codes.STORAGE_FULL,
            )

    async def close(self) -> None:
        """Finish the running work and close the file."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()

    def _run(self, work: Callable[[sqlite3.Connection], T], stores: bool) -> T:
        with disk_full_as_unavailable():
            try:
                result = self._transact(work)
            except sqlite3.Error as error:
                if stores or not is_disk_full(error) or not self._reserve.release():
                    raise
                result = self._transact(work)
            self._reserve.renew()
            return result

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._open()
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)
        except sqlite3.Error:
            if connection.in_transaction:  # the commit failed
                connection.rollback()
            raise

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = _opened(open_private(self.directory))
            except (OSError, sqlite3.Error) as error:
                if is_disk_full(error):
                    raise
                raise StartupError(f"--data-dir {self.directory}: cannot be used: {error}", param="data_dir") from error
        return self._connection


def _opened(path: Path) -> sqlite3.Connection:
    """A new connection. Raises sqlite3.Error."""
    # Another thread closes the connection, but never while this one uses it.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            return connection
        except sqlite3.OperationalError:  # another process is opening it; SQLite does not wait for this by itself
            if time.monotonic() > deadline:
                connection.close()
                raise
            time.sleep(0.02)
