"""Stores prepared adapters on disk: a directory per fingerprint, with one file per rank and a record of their digests.

    prepared/FINGERPRINT/  adapter.json  0.safetensors  1.safetensors  …

A lookup removes a damaged copy, which is then prepared again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
from loguru import logger
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from motet.core.digests import digest, file_digest
from motet.core.disk_space import cache_full_error, is_disk_full
from motet.core.errors import MotetError
from motet.core.messages import PreparedAdapter
from motet.core.paths import build_directory

RECORD = "adapter.json"

Shards: TypeAlias = Sequence[Callable[[], dict[str, Tensor]]]
"""A function per rank that returns its tensors; called one by one, so that only one rank's are in memory."""


def find_prepared(home: Path, shards: int) -> PreparedAdapter | None:
    """The prepared adapter in `home`; if it is damaged, it is removed and None returned."""
    try:
        checked, _, record = (home / RECORD).read_bytes().partition(b"\n")
        if checked.decode() != digest(record):
            raise ValueError(f"{RECORD} is damaged")
        prepared = msgspec.json.decode(record, type=PreparedAdapter)
        if len(prepared.files) != shards:
            raise ValueError(f"{len(prepared.files)} files for {shards} shards")
        for name, expected in zip(prepared.files, prepared.digests, strict=True):
            if file_digest(home / name) != expected:
                raise ValueError(f"{name} is damaged")
    except (OSError, ValueError) as error:
        if home.exists():
            logger.warning("prepared adapter {} is damaged and is prepared again: {}", home.name, error)
            remove_directory(home)
        return None
    return msgspec.structs.replace(prepared, files=tuple(str(home / name) for name in prepared.files))


def write_prepared(home: Path, prepared: PreparedAdapter, shards: Shards) -> PreparedAdapter:
    """Write each rank's tensors to `home`; return `prepared` with the files. Raises Unavailable if the disk is full."""

    def fill(scratch: Path) -> None:
        size, digests = 0, []
        for rank, tensors in enumerate(shards):
            path = scratch / f"{rank}.safetensors"
            save_file(tensors(), path)
            size += path.stat().st_size
            digests.append(file_digest(path))
        files = tuple(f"{rank}.safetensors" for rank in range(len(shards)))
        record = msgspec.json.encode(msgspec.structs.replace(prepared, files=files, digests=tuple(digests), bytes=size))
        (scratch / RECORD).write_bytes(digest(record).encode() + b"\n" + record)

    with _full_disk(home):
        build_directory(home, fill)
    found = find_prepared(home, len(shards))
    if found is None:
        raise MotetError("a prepared adapter vanished from the cache; try again")
    return found


def remove_directory(home: Path) -> None:
    """Remove a directory of the cache, atomically for other processes."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
        try:
            home.rename(scratch / home.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError:  # the disk is full, or another process has just removed it
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _full_disk(home: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_disk_full(error):
            raise cache_full_error() from error
        if isinstance(error, OSError):
            raise MotetError(f"the adapter cache cannot be written: {os.strerror(error.errno or 0)}") from error
        raise
