"""Limits the adapter cache on disk to --cache-size: removes the least recently used entries.

    CACHE/merged/…  CACHE/adapters/…  CACHE/prepared/…

Each entry is a directory that does not change once it has its final name; its modification time is its last use.
Several servers and processes may share a cache: entries are added and removed by renames, and a process that does not
find an entry creates it again.
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
from motet.core.disk_space import cache_limit
from motet.core.messages import PreparedAdapter


def copy_directory(cache: Path, ref: AdapterRef, revision: str) -> Path:
    """The directory for the files of `ref` at `revision` in the cache; it need not exist."""
    name = "\0".join((ref.source, ref.id, revision))
    return cache / hashlib.sha256(name.encode()).hexdigest()[:32]


FOLDERS = ("merged", "adapters", "prepared")
"""Merges are removed first: they can be computed again from the other folders."""

IN_USE_SECONDS = 600.0
"""An entry used within this time counts as in use: it may be being loaded, installed, or run."""

LEFTOVER_SECONDS = 3600.0
"""Age at which an unfinished entry is removed; longer than the time-outs of fetches and preparations."""

TRIM_TO = 0.9
"""Over the limit, entries are removed down to this fraction of it, so that not every load has to remove some."""


class Loaded(msgspec.Struct, frozen=True):
    """An adapter's files, and their prepared form.

    `copied`: `directory` is a copy in the cache. Otherwise it belongs to the source, and its mount may hang.
    """

    directory: Path
    prepared: PreparedAdapter
    copied: bool = False

    def intact(self) -> bool:
        """Whether the files in the cache still exist; users may empty the cache."""
        return (not self.copied or self.directory.is_dir()) and all(Path(f).is_file() for f in self.prepared.files)


class _Entry(msgspec.Struct):
    path: Path
    folder: int
    used: float
    size: int


class DiskCache:
    """Limits the cache in `root` to `limit` bytes; by default, to 20 GiB or half of the available space."""

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self._root, self._limit = root, limit
        self._sizes: dict[Path, int] = {}
        self._known: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk-cache")
        self._queued = threading.Event()
        self._is_over = False

    def use(self, loaded: Loaded) -> None:
        """Mark the entries of `loaded` as used now. If there are new entries, trim the cache in a thread."""
        entries = {Path(file).parent for file in loaded.prepared.files}
        if loaded.copied:
            entries.add(loaded.directory)
        entries = {entry for entry in entries if entry.parent.parent == self._root}
        for entry in entries:
            with suppress(OSError):  # removed meanwhile
                os.utime(entry)
        if not entries <= self._known:
            self._known |= entries
            self.make_room()

    def trim(self) -> None:
        """Remove unfinished entries, and others until the cache is within the limit; blocks."""
        entries = list(self._entries())
        self._sizes = {entry.path: entry.size for entry in entries}
        self._known &= self._sizes.keys()
        if not entries:
            return
        total = sum(self._sizes.values())
        limit = cache_limit(self._limit, self._root, total)
        if total <= limit:
            self._is_over = False
            return
        idle = time.time() - IN_USE_SECONDS
        for entry in sorted(entries, key=lambda entry: (entry.folder > 0, entry.used)):
            if total <= limit * TRIM_TO:
                return
            if entry.used < idle and self._remove(entry.path):
                total -= entry.size
        if total > limit and not self._is_over:
            self._is_over = True
            logger.warning("the adapter cache has {} bytes in use, more than --cache-size ({})", total, limit)

    def close(self) -> None:
        """Wait for running removals."""
        self._thread.shutdown()

    def make_room(self) -> None:
        """Trim the cache in a thread."""
        if not self._queued.is_set():
            self._queued.set()
            with suppress(RuntimeError):  # it is closed
                self._thread.submit(self._trim)

    def _trim(self) -> None:
        self._queued.clear()  # this trim may miss entries added from now on
        try:
            self.trim()
        except Exception:
            logger.exception("trimming the adapter cache failed")

    def _entries(self) -> Iterator[_Entry]:
        for number, folder in enumerate(FOLDERS):
            try:
                entries = list(os.scandir(self._root / folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    _sweep(path)
                    continue
                with suppress(OSError):
                    used = entry.stat(follow_symlinks=False).st_mtime
                    yield _Entry(path, number, used, self._sizes.get(path) or _size(path))

    def _remove(self, path: Path) -> bool:
        """Remove an entry, atomically for other processes. Return whether it is gone."""
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


def _sweep(scratch: Path) -> None:
    """Remove an old unfinished entry, left by a process that ended during a fetch or a preparation."""
    with suppress(OSError):
        written = max(path.stat(follow_symlinks=False).st_mtime for path in (scratch, *scratch.rglob("*")))
        if time.time() - written > LEFTOVER_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def _size(directory: Path) -> int:
    """The disk usage of `directory` in bytes."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
