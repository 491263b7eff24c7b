"""Digests of files that Motet wrote: they detect damage, not tampering."""

from __future__ import annotations

import hashlib
from pathlib import Path

DIGEST_BYTES = 16


def digest(data: bytes) -> str:
    """The digest of `data`."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def file_digest(path: Path) -> str:
    """The digest of a file's content; takes about one second per GB. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
