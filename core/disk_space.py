"""Free space for caches, and writes that fail because the disk is full: how to recognise and report them."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from motet.core import error_codes
from motet.core.errors import Unavailable

AUTO_CACHE_BYTES = 20 << 30
"""The most that `--cache-size auto` allows."""

FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(directory: Path) -> int:
    """The free space for this user on the disk of `directory`."""
    return shutil.disk_usage(directory).free


def cache_limit(cache_size: int | None, directory: Path, used: int) -> int:
    """The bytes that a cache in `directory`, which has `used` bytes, may have; with None, half of the available space,
    but at most AUTO_CACHE_BYTES."""
    return min(AUTO_CACHE_BYTES, (free_bytes(directory) + used) // 2) if cache_size is None else cache_size


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means that the disk or the user's quota is full; also for errors of SQLite and safetensors."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def cache_full_error() -> Unavailable:
    """The error for an adapter that could not be loaded since the cache's disk is full."""
    return Unavailable(
        "the disk of the adapter cache is full; free space there, or start the server with a smaller --cache-size",
        code=error_codes.STORAGE_FULL,
    )


def data_full_error() -> Unavailable:
    """The error for a write that failed since the data directory's disk is full."""
    return Unavailable(
        "the disk of the server's data directory (--data-dir) is full; delete files or responses, or free space there",
        code=error_codes.STORAGE_FULL,
    )


@contextmanager
def disk_full_as_unavailable() -> Iterator[None]:
    """Wrap code that writes into the data directory: raise Unavailable if its disk is full."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_disk_full(error):
            raise data_full_error() from error
        raise
