"""Recognises a full disk among failures to write, and makes the errors for it."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from motet.core import error_codes
from motet.core.errors import Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that a disk, or this user's share of it, is full. Libraries have their own errors."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def cache_is_full() -> Unavailable:
    """The failure of a load whose files found no room."""
    return Unavailable(
        "the disk of the adapter cache is full; make room there, or start the server with a smaller --cache-size",
        code=error_codes.STORAGE_FULL,
    )


def data_is_full() -> Unavailable:
    """The failure of what found no room in the data directory."""
    return Unavailable(
        "the disk of the server's data directory (--data-dir) is full; delete files or responses, or make room there",
        code=error_codes.STORAGE_FULL,
    )


@contextmanager
def needs_room() -> Iterator[None]:
    """Code that writes into the data directory. Raises Unavailable if its disk is full."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_disk_full(error):
            raise data_is_full() from error
        raise
