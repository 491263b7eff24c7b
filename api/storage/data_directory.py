"""Makes the data directory, which contains prompts and answers, readable by the server's user only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from loguru import logger

from motet.core.errors import StartupError

DATABASE = "motet.db"
FILES = "files"
RESERVE = "motet.reserve"
PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


def check_owners(directory: Path) -> None:
    """Raise StartupError if the database belongs to another user; log a warning if the directory does.

    The directory of a mounted volume may belong to another user, who can then replace the files in it.
    """
    owner = directory.stat().st_uid
    if not _is_trusted(owner):
        logger.warning(
            "--data-dir {} belongs to user {}, who can remove and replace what is stored in it", directory, owner
        )
    _check_files(directory)


def open_private(directory: Path) -> Path:
    """Make `directory` and the database in it readable by this user only; returns the database's path.

    Creates the database, since SQLite gives its journal files the same mode. Raises OSError, and
    StartupError for a database of another user.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY)
    database = directory / DATABASE
    descriptor = os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    os.close(descriptor)
    for path, state in _check_files(directory):
        _make_private(path, state)
    return database


def _make_private(path: Path, state: os.stat_result) -> None:
    """Remove other users' permissions on `path`, if this user may change them."""
    if state.st_uid == os.geteuid() and state.st_mode & 0o077:
        with suppress(FileNotFoundError):
            path.chmod(PRIVATE_DIRECTORY if stat.S_ISDIR(state.st_mode) else PRIVATE_FILE)


def _is_trusted(owner: int) -> bool:
    """Whether `owner` is this user or root, who may read everything anyway."""
    return owner in (0, os.geteuid())


def _check_files(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """The server's files in the directory. Raises StartupError if one of them belongs to another user."""
    files = []
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", FILES):
        path = directory / name
        try:
            state = path.stat()
        except FileNotFoundError:  # another process may have just removed a journal
            continue
        if not _is_trusted(state.st_uid):
            raise StartupError(
                f"--data-dir {directory}: {name} belongs to user {state.st_uid}, who can read what is stored; run the "
                "server as that user, or choose another directory",
                param="data_dir",
            )
        files.append((path, state))
    return files
