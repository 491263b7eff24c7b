"""Files that users keep here: content in a directory, facts in the database. Ids are ours, owners see their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from msgspec.structs import replace

from motet.api.database import Database
from motet.api.paging import Page, page_rows
from motet.core.errors import NotFound

_TABLE = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, file BLOB NOT NULL
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
    """The files beside one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._directory = database.directory / "files"

    async def put(self, owner: str, name: str, purpose: str, content: BinaryIO) -> FileObject:
        """Keep what is left of `content`. Raises PayloadTooLarge if there is no room for it."""
        start = content.tell()
        size = content.seek(0, os.SEEK_END) - start
        content.seek(start)
        file = _facts(name, purpose, size)
        await self._add(owner, file, checked=True)
        try:
            await asyncio.to_thread(self._write, file.id, lambda target: shutil.copyfileobj(content, target))
        except BaseException:
            await self.delete(owner, file.id)
            raise
        return file

    async def put_lines(self, owner: str, name: str, purpose: str, lines: Iterable[bytes]) -> FileObject:
        """Keep a file of these lines, whether or not there is room: they were counted as they came."""
        file = _facts(name, purpose, 0)

        def write(target: BinaryIO) -> None:
            target.writelines(line + b"\n" for line in lines)

        size = await asyncio.to_thread(self._write, file.id, write)
        file = replace(file, bytes=size)
        await self._add(owner, file, checked=False)
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

    async def list(self, owner: str, purpose: str | None, page: Page) -> tuple[list[FileObject], bool]:
        """A page of the owner's files, and whether more follow. Raises InvalidRequest."""
        where = {"owner": owner} | ({"purpose": purpose} if purpose else {})

        def work(connection: sqlite3.Connection) -> tuple[list[bytes], bool]:
            connection.execute(_TABLE)
            return page_rows(connection, ("file", "files"), page, where)

        rows, more = await self._database.run(work)
        return [msgspec.json.decode(row, type=FileObject) for row in rows], more

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

    def _write(self, id: str, fill: Callable[[BinaryIO], None]) -> int:
        """Write a file, whole or not at all; its size."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.path(f"{id}.part")
        try:
            with part.open("wb") as file:
                fill(file)
                size = file.tell()
            part.rename(self.path(id))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return size

    async def _add(self, owner: str, file: FileObject, checked: bool) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_TABLE)
            if checked:
                self._database.check_room(connection, file.bytes, "file")
            connection.execute(
                "INSERT INTO files (id, owner, purpose, bytes, file) VALUES (?, ?, ?, ?, ?)",
                (file.id, owner, file.purpose, file.bytes, msgspec.json.encode(file)),
            )

        await self._database.run(work)


def _facts(name: str, purpose: str, size: int) -> FileObject:
    id = f"file-{uuid.uuid4().hex}"
    return FileObject(id=id, bytes=size, created_at=int(time.time()), filename=name, purpose=purpose)


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no file {id[:80]!r}", param="file_id", code="not_found")
