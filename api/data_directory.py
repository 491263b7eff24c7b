"""The data directory holds prompts and answers: only the server's user may read it, also where it existed before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from loguru import logger

from motet.core.errors import StartupError

DATABASE = "motet.db"
FILES = "files"
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
    for path in _own_paths(directory):
        _check_owner(path, directory)


def open_private(directory: Path) -> Path:
    """Make `directory` and the database in it readable by this user only; the database's path.

    SQLite gives its journal files the mode of the database, so the database is created here. Raises OSError, and
    StartupError for a database of another user.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY)
    database = directory / DATABASE
    descriptor = os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    os.close(descriptor)
    for path in _own_paths(directory):
        _check_owner(path, directory)
        make_private(path)
    return database


def make_private(path: Path) -> None:
    """Take other users' rights to `path` away, if this user may change them."""
    state = path.stat()
    if state.st_uid == os.geteuid() and state.st_mode & 0o077:
        path.chmod(PRIVATE_DIRECTORY if stat.S_ISDIR(state.st_mode) else PRIVATE_FILE)


def _own_paths(directory: Path) -> list[Path]:
    names = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", FILES)
    return [directory / name for name in names if (directory / name).exists()]


def _is_trusted(owner: int) -> bool:
    """Whether `owner` is this user, or root, who may read everything anyway."""
    return owner in (0, os.geteuid())


def _check_owner(path: Path, directory: Path) -> None:
    owner = path.stat().st_uid
    if not _is_trusted(owner):
        raise StartupError(
            f"--data-dir {directory}: {path.name} belongs to user {owner}, who can read what is stored; run the server "
            "as that user, or choose another directory",
            param="data_dir",
        )
