"""Where the cache has its copies of fetched adapters."""

from __future__ import annotations

import hashlib
from pathlib import Path

from motet.core.adapters import AdapterRef


def copy_directory(cache: Path, ref: AdapterRef, revision: str) -> Path:
    """Where the cache has, or would have, the files of `ref` at `revision`."""
    name = "\0".join((ref.source, ref.id, revision))
    return cache / hashlib.sha256(name.encode()).hexdigest()[:32]
