"""Permissions of the data directory, also where it existed before with rights for other users."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from loguru import logger

from motet.api.server.supervisor import check_directories
from motet.api.storage import data_directory
from motet.api.storage.database import Database
from motet.api.storage.files import FileStore, new_file
from motet.core.errors import StartupError
from motet.core.settings import Settings

NAMES = ("motet.db", "motet.db-wal", "motet.db-shm")


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that others may read, in a process whose new files others may read."""
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(0o755)
    before = os.umask(0o022)
    yield directory
    os.umask(before)


def modes(directory: Path, names: tuple[str, ...]) -> list[int]:
    return [(directory / name).stat().st_mode & 0o777 for name in names]


async def use(directory: Path) -> None:
    """Store a file, and look at the modes while the database is open."""

    async def content() -> AsyncIterator[bytes]:
        yield b"secret"

    database = Database(directory)
    await FileStore(database).put("", new_file("a", "batch", None), content())
    assert modes(directory, NAMES) == [0o600] * 3
    assert modes(directory, ("files",)) == [0o700]
    await database.close()


def test_new_files_are_private_in_a_shared_directory(shared: Path) -> None:
    asyncio.run(use(shared))


def test_existing_files_become_private(shared: Path) -> None:
    (shared / "files").mkdir(mode=0o755)
    for name in NAMES:
        (shared / name).touch(0o644)
    assert modes(shared, (*NAMES, "files")) == [0o644] * 3 + [0o755]
    asyncio.run(use(shared))


def test_a_database_of_another_user_ends_the_start(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared / "motet.db").touch()
    monkeypatch.setattr(data_directory.os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:
        os.chown(shared / "motet.db", 12345, -1)
    message = r"--data-dir .*: motet.db belongs to user \d+, .*choose another directory"
    with pytest.raises(StartupError, match=message):
        check_directories(Settings(data_dir=str(shared)))
    database = Database(shared)
    with pytest.raises(StartupError, match=message):
        asyncio.run(database.run(lambda connection: None))


def test_a_directory_of_another_user_is_warned_of(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(shared, 12345, -1)
    monkeypatch.setattr(data_directory.os, "geteuid", lambda: os.getuid() + 1)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    try:
        check_directories(Settings(data_dir=str(shared)))
    finally:
        logger.remove(sink)
    assert sum("belongs to user" in line for line in lines) == 1
