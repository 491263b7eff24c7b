"""The cache and data directories, atomic writes, and paths that stay within their roots.

After a power failure, a file is complete or does not exist: content reaches the disk before its name does.
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
    if chosen := os.environ.get("MOTET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motet"


def data_directory(chosen: str = "") -> Path:
    """Where what users store is kept: `chosen`, else XDG_DATA_HOME/motet, else ~/.local/share/motet."""
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "motet"


def check_writable(directory: Path) -> None:
    """Make `directory` if it is missing, and write a little into it. Raises OSError, also where the disk is full."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def build_directory(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make `target` by calling `fill` on a fresh directory beside it, then renaming: whole or not there at all.

    An existing `target` is returned as it is. When two processes race, one result stays and both are equal. Files
    reach the disk before the rename does, so that a crash of the machine leaves no `target` with empty files.
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
    """Write `target` by way of another name beside it. An existing file is replaced. Raises OSError."""
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
    """Wait until the disk has every file below `directory`."""
    for path in (*directory.rglob("*"), directory):
        if path.is_dir() or path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; for files that other people wrote.

    Raises OSError (FileNotFoundError where it does not exist), and ValueError naming a file that is larger or of
    another kind. A FIFO does not block it.
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
        raise ValueError(f"{path.name} has more than {limit} bytes, which is the limit")
    return data


def inside(root: Path, relative: str) -> Path | None:
    """`root / relative` with links resolved, or None if that lies outside `root`."""
    real_root = root.resolve()
    path = (real_root / relative).resolve()
    return path if path.is_relative_to(real_root) and path != real_root else None
