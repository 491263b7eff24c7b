"""The size of the adapter cache on the disk: what was used last stays, within --cache-size.

    CACHE/merged/…  CACHE/adapters/…  CACHE/prepared/…

Each entry is a directory that never changes once it has its name; its modification time is when it was used last.
Several servers, and processes of each, may share a cache: an entry appears and disappears by a rename, and a
process that misses one makes it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
from loguru import logger

from motet.core.adapter_source import AdapterRef
from motet.core.messages import PreparedAdapter


def copy_directory(cache: Path, ref: AdapterRef, revision: str) -> Path:
    """Where the cache has, or would have, the files of `ref` at `revision`."""
    name = "\0".join((ref.source, ref.id, revision))
    return cache / hashlib.sha256(name.encode()).hexdigest()[:32]


FOLDERS = ("merged", "adapters", "prepared")
"""Merges leave before anything else: they are made from what the other folders have."""

IN_USE_SECONDS = 600.0
"""What was used within this time is in use: being loaded, installed, or run."""

LEFTOVER_SECONDS = 3600.0
"""Unfinished entries that are older than the limits on fetching and preparing were left by a process that died."""

KEEP = 0.9
"""How much of the limit is kept when it was passed, so that not every load has to remove something."""

AUTO_BYTES = 20 << 30


class Loaded(msgspec.Struct, frozen=True):
    """An adapter's own files, and what the loader made of them.

    `copied`: `directory` is the cache's copy. Elsewhere it is the source's own, and may lie on a mount that hangs.
    """

    directory: Path
    prepared: PreparedAdapter
    copied: bool = False

    def intact(self) -> bool:
        """Whether the files in the cache are still there; caches may be emptied by hand."""
        return (not self.copied or self.directory.is_dir()) and all(Path(f).is_file() for f in self.prepared.files)


class _Entry(msgspec.Struct):
    path: Path
    folder: int
    used: float
    size: int


class DiskCache:
    """Keeps the cache in `root` within `limit` bytes; without one, within 20 GiB and half of what the disk has."""

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self._root, self._limit = root, limit
        self._sizes: dict[Path, int] = {}
        self._known: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk-cache")
        self._queued = threading.Event()
        self._is_over = False

    def use(self, loaded: Loaded) -> None:
        """Note that the entries of `loaded` are used now. One that is new may make others leave, in a thread."""
        entries = {Path(file).parent for file in loaded.prepared.files}
        if loaded.copied:
            entries.add(loaded.directory)
        entries = {entry for entry in entries if entry.parent.parent == self._root}
        for entry in entries:
            with suppress(OSError):  # it has just left
                os.utime(entry)
        if not entries <= self._known:
            self._known |= entries
            self.make_room()

    def trim(self) -> None:
        """Remove leftovers, and entries until the limit holds again; blocks."""
        entries = list(self._entries())
        self._sizes = {entry.path: entry.size for entry in entries}
        self._known &= self._sizes.keys()
        if not entries:
            return
        total = sum(self._sizes.values())
        limit = self._limit
        if limit is None:
            limit = min(AUTO_BYTES, (free_bytes(self._root) + total) // 2)
        if total <= limit:
            self._is_over = False
            return
        idle = time.time() - IN_USE_SECONDS
        for entry in sorted(entries, key=lambda entry: (entry.folder > 0, entry.used)):
            if total <= limit * KEEP:
                return
            if entry.used < idle and self._remove(entry.path):
                total -= entry.size
        if total > limit and not self._is_over:
            self._is_over = True
            logger.warning("the adapter cache has {} bytes in use, more than --cache-size ({})", total, limit)

    def close(self) -> None:
        """Wait until nothing is being removed any more."""
        self._thread.shutdown()

    def make_room(self) -> None:
        """Have the limit seen to, in a thread."""
        if not self._queued.is_set():
            self._queued.set()
            with suppress(RuntimeError):  # it is closed
                self._thread.submit(self._trim)

    def _trim(self) -> None:
        self._queued.clear()  # what comes from now on may be missed
        try:
            self.trim()
        except Exception:
            logger.exception("trimming the adapter cache failed")

    def _entries(self) -> Iterator[_Entry]:
        for number, folder in enumerate(FOLDERS):
            try:
                found = list(os.scandir(self._root / folder))
            except FileNotFoundError:
                continue
            for entry in found:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    _sweep(path)
                    continue
                with suppress(OSError):
                    used = entry.stat(follow_symlinks=False).st_mtime
                    yield _Entry(path, number, used, self._sizes.get(path) or _size(path))

    def _remove(self, path: Path) -> bool:
        """Remove an entry, all at once for other processes; whether it has gone."""
        try:
            scratch = Path(tempfile.mkdtemp(prefix=".evicted.", dir=path.parent))
        except OSError as error:
            logger.warning("the adapter cache cannot be trimmed: {}", error.strerror)
            return False
        try:
            path.rename(scratch / path.name)
        except OSError:
            return not path.exists()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True


def free_bytes(directory: Path) -> int:
    """What this user may still write to the disk of `directory`."""
    return shutil.disk_usage(directory).free


def _sweep(scratch: Path) -> None:
    """Remove what a fetch or a preparation left that was cut off by the end of its process."""
    with suppress(OSError):
        written = max(path.stat(follow_symlinks=False).st_mtime for path in (scratch, *scratch.rglob("*")))
        if time.time() - written > LEFTOVER_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def _size(directory: Path) -> int:
    """Bytes that the files in `directory` take on the disk."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
