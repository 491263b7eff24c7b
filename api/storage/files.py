"""Stores users' files: the content in a directory, the metadata in the database. Owners see only their own files.

Content is written under a temporary name and renamed in the transaction that lists the file, so listed files are
complete. Files without a row, left by a process that died, are removed later.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeVar

import msgspec
from loguru import logger
from msgspec import Meta
from msgspec.structs import replace

from motet.api.storage.data_directory import FILES, PRIVATE_DIRECTORY
from motet.api.storage.database import Database
from motet.api.storage.paging import Page, page_rows
from motet.api.storage.upload_reservations import active_reservations
from motet.api.storage.usage import Counted, count_by_owner
from motet.core import error_codes
from motet.core.disk_space import disk_full_as_unavailable
from motet.core.errors import NotFound

SWEEP_SECONDS = 300.0
"""Seconds between sweeps, and since the last write to a file without a row before a sweep removes it."""

_TABLES = (
    """CREATE TABLE IF NOT EXISTS files (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
        purpose TEXT NOT NULL, bytes INTEGER NOT NULL, file BLOB NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS file_ends (
        ends INTEGER NOT NULL, id TEXT NOT NULL, PRIMARY KEY (ends, id)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS file_ends_by_id ON file_ends (id)",
)
_COUNTED = Counted("files", "MAX({row}.bytes, 4096)")
T = TypeVar("T")


class ExpiresAfter(msgspec.Struct, frozen=True):
    """When a file expires: `seconds` after its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file's metadata; times are in seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


def new_file(name: str, purpose: str, expires: ExpiresAfter | None, id: str = "") -> FileObject:
    """The metadata of a file before its content; with a new id unless `id` is set."""
    now = int(time.time())
    return FileObject(
        id=id or f"file-{uuid.uuid4().hex}",
        bytes=0,
        created_at=now,
        expires_at=now + expires.seconds if expires else None,
        filename=name,
        purpose=purpose,
    )


class FileStore:
    """The files beside one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._directory = database.directory / FILES

    async def put(self, owner: str, file: FileObject, content: AsyncIterable[bytes]) -> FileObject:
        """Store a file atomically, without a check for room; replaces a file with the same id."""
        part = self.path(f"{file.id}.{uuid.uuid4().hex}.part")
        target = await asyncio.to_thread(self._create, part)
        try:
            with disk_full_as_unavailable(), target:
                async for piece in content:
                    await asyncio.to_thread(target.write, piece)
            return await self.add_written(owner, file, part)
        finally:
            part.unlink(missing_ok=True)

    async def add_written(self, owner: str, file: FileObject, part: Path) -> FileObject:
        """Store a file whose content is complete, by moving `part`, which `temporary_files` created."""
        file = replace(file, bytes=part.stat().st_size)
        await self._add(owner, file, part)
        return file

    @contextmanager
    def temporary_files(self, upload: str) -> Iterator[Callable[[], BinaryIO]]:
        """A function that creates files for the upload with that reservation; removes those not added at the end.

        They are in the same directory as the others: `--max-files` limits them, and sweeps remove leftovers.
        """
        parts: list[BinaryIO] = []

        def create() -> BinaryIO:
            parts.append(self._create(self.path(f"{upload}.{len(parts)}.part")))
            return parts[-1]

        try:
            yield create
        finally:
            for part in parts:
                Path(part.name).unlink(missing_ok=True)
                with suppress(OSError):  # there is no room for its last bytes
                    part.close()

    async def get(self, owner: str, id: str) -> FileObject:
        """The file `id`. Raises NotFound if it does not exist or has another owner."""

        def work(connection: sqlite3.Connection) -> tuple[bytes] | None:
            query = "SELECT file FROM files WHERE id = ? AND owner = ?"
            row: tuple[bytes] | None = connection.execute(query, (id, owner)).fetchone()
            return row

        row = await self._run(work)
        if row is None or not self.path(id).is_file():
            raise _missing(id)
        return msgspec.json.decode(row[0], type=FileObject)

    async def open(self, owner: str, id: str) -> tuple[FileObject, BinaryIO]:
        """The file `id` and its content, which stays readable if the file is deleted. Raises NotFound."""
        file = await self.get(owner, id)
        try:
            return file, self.path(id).open("rb")
        except FileNotFoundError:
            raise _missing(id) from None

    async def list(self, owner: str, purpose: str | None, page: Page) -> tuple[list[FileObject], bool]:
        """A page of the owner's files, and whether more follow. Raises InvalidRequest."""
        where = {"owner": owner} | ({"purpose": purpose} if purpose else {})
        rows, more = await self._run(lambda connection: page_rows(connection, ("file", "files"), page, where))
        return [msgspec.json.decode(row, type=FileObject) for row in rows], more

    async def delete(self, owner: str, id: str) -> None:
        """Delete the file `id`. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM files WHERE id = ? AND owner = ?", (id, owner)).rowcount

        if not await self._run(work):
            raise _missing(id)
        self.path(id).unlink(missing_ok=True)

    def path(self, id: str) -> Path:
        """The path of the content of `id`, which must be an id that the server made."""
        return self._directory / id

    async def sweep_periodically(self) -> None:
        """Sweep every SWEEP_SECONDS, until cancelled."""
        while True:
            try:
                await self._run(self._sweep)
            except Exception as error:
                logger.error("leftover files cannot be removed: {}", error)
            await asyncio.sleep(SWEEP_SECONDS)

    def _create(self, path: Path) -> BinaryIO:
        self._directory.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY)
        return path.open("w+b")

    async def _add(self, owner: str, file: FileObject, part: Path) -> None:
        def work(connection: sqlite3.Connection) -> None:
            part.rename(self.path(file.id))
            connection.execute("DELETE FROM files WHERE id = ?", (file.id,))
            connection.execute(
                "INSERT INTO files (id, owner, purpose, bytes, file) VALUES (?, ?, ?, ?, ?)",
                (file.id, owner, file.purpose, file.bytes, msgspec.json.encode(file)),
            )
            connection.execute("DELETE FROM file_ends WHERE id = ?", (file.id,))  # of a file that this one replaces
            if file.expires_at is not None:
                connection.execute("INSERT INTO file_ends VALUES (?, ?)", (file.expires_at, file.id))

        await self._run(work, stores=True)

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Remove files without a row and unfinished uploads; in a transaction, so that no row is added meanwhile."""
        if not self._directory.is_dir():
            return
        latest = time.time() - SWEEP_SECONDS
        known = {row[0] for row in connection.execute("SELECT id FROM files")}
        uploading = active_reservations(connection)
        for path in [path for path in self._directory.iterdir() if path.name not in known]:
            if path.name.partition(".")[0] in uploading:
                continue
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < latest:
                    path.unlink()

    def _expire(self, connection: sqlite3.Connection) -> None:
        expired = "DELETE FROM file_ends WHERE ends <= ? RETURNING id"
        for (id,) in connection.execute(expired, (int(time.time()),)).fetchall():
            connection.execute("DELETE FROM files WHERE id = ?", (id,))
            self.path(id).unlink(missing_ok=True)

    async def _run(self, work: Callable[[sqlite3.Connection], T], stores: bool = False) -> T:
        def prepared(connection: sqlite3.Connection) -> T:
            for table in _TABLES:
                connection.execute(table)
            count_by_owner(connection, _COUNTED)
            self._expire(connection)
            return work(connection)

        return await self._database.run(prepared, stores)


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no file {id[:80]!r}", param="file_id", code=error_codes.NOT_FOUND)
