"""A disk that is full, told apart from other failures to write."""

from __future__ import annotations

import errno

from motet.core.errors import Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that a disk, or this user's share of it, is full; safetensors has errors of its own kind."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def cache_is_full() -> Unavailable:
    """The failure of a load whose files found no room."""
    return Unavailable(
        "the disk of the adapter cache is full; make room there, or start the server with a smaller --cache-size",
        code="storage_full",
    )
