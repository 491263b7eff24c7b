"""The data directory holds prompts and answers: only the server's user may read it, also where it existed before."""

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
    """Raise StartupError for a database of another user, and warn of a directory of another user.

    A directory may belong to another user where a volume was mounted; its owner can replace the files in it.
    """
    owner = directory.stat().st_uid
    if not _is_trusted(owner):
        logger.warning(
            "--data-dir {} belongs to user {}, who can remove and replace what is stored in it", directory, owner
        )
    _check_files(directory)


def open_private(directory: Path) -> Path:
    """Make `directory` and the database in it readable by this user only; the database's path.

    SQLite gives its journal files the mode of the database, so the database is created here. Raises OSError, and
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
    """Take other users' rights to `path` away, if this user may change them."""
    if state.st_uid == os.geteuid() and state.st_mode & 0o077:
        with suppress(FileNotFoundError):
            path.chmod(PRIVATE_DIRECTORY if stat.S_ISDIR(state.st_mode) else PRIVATE_FILE)


def _is_trusted(owner: int) -> bool:
    """Whether `owner` is this user, or root, who may read everything anyway."""
    return owner in (0, os.geteuid())


def _check_files(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """What the directory has of ours. Raises StartupError if something of it belongs to another user."""
    found = []
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", FILES):
        path = directory / name
        try:
            state = path.stat()
        except FileNotFoundError:  # also a journal that another process has just removed
            continue
        if not _is_trusted(state.st_uid):
            raise StartupError(
                f"--data-dir {directory}: {name} belongs to user {state.st_uid}, who can read what is stored; run the "
                "server as that user, or choose another directory",
                param="data_dir",
            )
        found.append((path, state))
    return found
