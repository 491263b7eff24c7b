"""Files that users keep here: content in a directory, facts in the database. Ids are ours, owners see their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from motet.api.database import Database
from motet.core.errors import NotFound, PayloadTooLarge

_TABLE = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    purpose TEXT NOT NULL, file BLOB NOT NULL
)"""


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file's facts."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileStore:
    """The files beside one database; `total` limits their bytes over all owners."""

    def __init__(self, database: Database, total: int) -> None:
        self._database = database
        self._total = total
        self._directory = database.directory / "files"

    async def put(self, owner: str, name: str, purpose: str, content: BinaryIO) -> FileObject:
        """Keep what is left of `content`. Raises PayloadTooLarge if there is no room for it."""
        id = f"file-{uuid.uuid4().hex}"
        size = await asyncio.to_thread(self._write, id, content)
        file = FileObject(id=id, bytes=size, created_at=int(time.time()), filename=name, purpose=purpose)
        try:
            await self._add(owner, file)
        except BaseException:
            self.path(id).unlink(missing_ok=True)
            raise
        return file

    async def put_lines(self, owner: str, name: str, purpose: str, lines: Iterable[bytes]) -> FileObject:
        """Keep a file of these lines."""
        id = f"file-{uuid.uuid4().hex}"

        def write() -> int:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path(id).open("wb") as file:
                for line in lines:
                    file.write(line + b"\n")
                return file.tell()

        size = await asyncio.to_thread(write)
        file = FileObject(id=id, bytes=size, created_at=int(time.time()), filename=name, purpose=purpose)
        await self._add(owner, file)
        return file

    async def get(self, owner: str, id: str) -> FileObject:
        """The file `id`. Raises NotFound if there is none, or it is somebody else's."""

        def work(connection: sqlite3.Connection) -> tuple[bytes] | None:
            connection.execute(_TABLE)
            query = "SELECT file FROM files WHERE id = ? AND owner = ?"
            row: tuple[bytes] | None = connection.execute(query, (id, owner)).fetchone()
            return row

        row = await self._database.run(work)
        if row is None or not self.path(id).is_file():
            raise _missing(id)
        return msgspec.json.decode(row[0], type=FileObject)

    async def list(self, owner: str, purpose: str | None) -> list[FileObject]:
        """The owner's files, oldest first."""

        def work(connection: sqlite3.Connection) -> list[tuple[bytes]]:
            connection.execute(_TABLE)
            query = "SELECT file FROM files WHERE owner = ? AND ? IN ('', purpose) ORDER BY number"
            return connection.execute(query, (owner, purpose or "")).fetchall()

        return [msgspec.json.decode(row[0], type=FileObject) for row in await self._database.run(work)]

    async def delete(self, owner: str, id: str) -> None:
        """Forget the file `id`. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_TABLE)
            return connection.execute("DELETE FROM files WHERE id = ? AND owner = ?", (id, owner)).rowcount

        if not await self._database.run(work):
            raise _missing(id)
        self.path(id).unlink(missing_ok=True)

    def path(self, id: str) -> Path:
        """Where the content of `id`, which must be one of ours, lies."""
        return self._directory / id

    def _write(self, id: str, content: BinaryIO) -> int:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = sum(entry.stat().st_size for entry in os.scandir(self._directory) if entry.is_file())
        start = content.tell()
        size = content.seek(0, os.SEEK_END) - start
        content.seek(start)
        if kept + size > self._total:
            raise PayloadTooLarge(
                f"the server keeps {self._total} bytes of files at most (--max-files); delete some first", param="file"
            )
        path = self.path(id)
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return size

    async def _add(self, owner: str, file: FileObject) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_TABLE)
            connection.execute(
                "INSERT INTO files (id, owner, purpose, file) VALUES (?, ?, ?, ?)",
                (file.id, owner, file.purpose, msgspec.json.encode(file)),
            )

        await self._database.run(work)


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no file {id[:80]!r}", param="file_id", code="not_found")
