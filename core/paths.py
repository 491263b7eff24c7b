"""Where Motet keeps files: one cache directory a user, atomic writes, and paths that stay in their roots.

What is written here survives a power failure whole or is not there: content reaches the disk before its name does.
"""

from __future__ import annotations

import os
import shutil
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


def build_directory(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make `target` by calling `fill` on a fresh directory beside it, then renaming: whole or not there at all.

    An existing `target` is returned as it is. When two processes race, one result stays and both are equal.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(scratch)
        for path in (*scratch.rglob("*"), scratch):
            if path.is_dir() or path.is_file():
                _sync(path)
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


def _sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inside(root: Path, relative: str) -> Path | None:
    """`root / relative` with links resolved, or None if that lies outside `root`."""
    real_root = root.resolve()
    path = (real_root / relative).resolve()
    return path if path.is_relative_to(real_root) and path != real_root else None
