"""The cache and data directories, atomic writes, and checks that paths stay within their roots.

After a power failure, a file is complete or does not exist: content is synced to the disk before the rename.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_directory() -> Path:
    """The user's cache for Motet: MOTET_CACHE, else XDG_CACHE_HOME/motet, else ~/.cache/motet."""
    if configured := os.environ.get("MOTET_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motet"


def data_directory(configured: str = "") -> Path:
    """The directory of users' stored data: `configured`, else XDG_DATA_HOME/motet, else ~/.local/share/motet."""
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "motet"


def check_writable(directory: Path) -> None:
    """Create `directory` if it is missing, and write 4 KiB into it. Raises OSError, also if the disk is full."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def build_directory(target: Path, fill: Callable[[Path], None]) -> Path:
    """Create `target` atomically: `fill` a new directory beside it, then rename that.

    An existing `target` is returned unchanged. If two processes race, the first result is kept; both are equal. Files
    are synced before the rename, so that a crash of the machine leaves no `target` with empty files.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(scratch)
        sync_directory(scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _sync(target.parent)
    return target


def write_file(target: Path, content: bytes) -> None:
    """Write `target` atomically, by a temporary file beside it. Replaces an existing file. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(target.parent)


def sync_directory(directory: Path) -> None:
    """Sync every file and directory below `directory` to the disk."""
    for path in (*directory.rglob("*"), directory):
        if path.is_dir() or path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    """Sync a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; for untrusted files.

    Raises OSError (FileNotFoundError if the file does not exist), and ValueError with the name of a file that is too
    large or not regular. Does not block on a FIFO.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if state.st_size > limit:
            raise ValueError(f"{path.name} has {state.st_size} bytes; the limit is {limit}")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError(f"{path.name} has more than {limit} bytes, the limit")
    return data


def inside(root: Path, relative: str) -> Path | None:
    """`root / relative` with symbolic links resolved, or None if it is not below `root`."""
    real_root = root.resolve()
    path = (real_root / relative).resolve()
    return path if path.is_relative_to(real_root) and path != real_root else None
