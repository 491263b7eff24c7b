"""Adapter root directories: maps names to directories, restricts symbolic links, and lists adapters.

    NAME                 ROOT/NAME, also nested: team/run/checkpoint-500
    the root's name      ROOT, if ROOT itself is an adapter
    org/name             a snapshot of ROOT/models--org--name, if ROOT is a Hugging Face hub cache
    /absolute/path       a directory inside a root

A link must stay inside the roots unless `follow_links` is set. The only files opened are the refs of a hub cache.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from motet.core.adapter_directory_errors import names_in, other_formats
from motet.core.errors import NotFound
from motet.core.paths import read_regular

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_PREFIX, HUB_SEPARATOR = "models--", "--"
MAX_DEPTH = 4
MAX_SCANNED = 20_000
"""Directories that one listing scans at most."""

MAX_SCANNED_FOR_ERROR = 200
MAX_OUTSIDE_LINKS = 20
MAX_SUGGESTED = 3
"""Adapters below a directory that an error lists at most."""


class AdapterRoots:
    """The directories `paths`, in the order in which names are looked up."""

    def __init__(self, paths: Sequence[Path], follow_links: bool = False) -> None:
        self.paths = tuple(paths)
        self.follow_links = follow_links
        self.outside_links: dict[Path, bool] = {}
        """Links found by listings that lead out of the roots, each with whether it has been logged."""

    def admits(self, path: Path) -> bool:
        """Whether `path` may be read: it resolves to a place inside a root, or `follow_links` is set."""
        real = path.resolve()
        return self.follow_links or any(real.is_relative_to(root.resolve()) for root in self.paths)

    def find(self, name: str) -> Path:
        """The directory of the adapter called `name`. Raises NotFound with the reason, if known."""
        path = PurePosixPath(name)
        # One name per adapter: caches and limits would count another spelling as another adapter.
        if name != str(path) or ".." in path.parts or name == ".":
            raise _not_found(name, "not a directory name; remove '..', '.' and extra slashes")
        if not self.paths:
            raise _not_found(name, "the server has no --adapter-root")
        reason = ""
        for root in self.paths:
            for directory in self._candidates(root, path):
                with contextlib.suppress(OSError, ValueError):  # the name cannot be a file name
                    if not self.admits(directory):
                        reason = reason or self._outside_link(root, directory)
                    elif (directory / CONFIG_FILE).is_file():
                        return directory.resolve()
                    elif directory.is_dir():
                        reason = reason or self._no_config(root, directory)
        if reason:
            raise _not_found(name, reason)
        if path.is_absolute():
            raise _not_found(name, "the path is not inside any --adapter-root directory of the server")
        raise _not_found(name)

    def adapter_names(self) -> list[str]:
        """The names of all adapters within MAX_DEPTH and MAX_SCANNED, those nearest to a root first."""
        names: dict[str, None] = {}
        for root in self.paths:
            names.update(dict.fromkeys(_Scan(self, root, MAX_SCANNED).names()))
        return list(names)

    def _candidates(self, root: Path, path: PurePosixPath) -> Iterator[Path]:
        """The directories in `root` that the name `path` may refer to."""
        if path.is_absolute():
            for base in (root.absolute(), root.resolve()):
                if Path(path).is_relative_to(base):
                    yield Path(path)
                    return
            return
        yield root / path
        if str(path) == root_name(root):
            yield root
        if (snapshot := _snapshot(root, path)) is not None:
            yield snapshot

    def _outside_link(self, root: Path, directory: Path) -> str:
        """The error for a `directory` reached through a link that leads out of the roots."""
        place = directory
        if directory.is_relative_to(root):
            place = root
            for step in directory.relative_to(root).parts:
                place = place / step
                if not self.admits(place):
                    break
        name = place.relative_to(root) if place.is_relative_to(root) and place != root else place.name
        return f"{name} is a link that leads out of the adapter roots; --follow-links lets the server follow it"

    def _no_config(self, root: Path, directory: Path) -> str:
        """The error for a `directory` without adapter_config.json; lists some adapters below it."""
        below = list(itertools.islice(_Scan(self, directory, MAX_SCANNED_FOR_ERROR).names(), MAX_SUGGESTED))
        shown = directory.name if directory != root else "the adapter root"
        suggestion = f"; adapters below it: {', '.join(below)}"
        hint = suggestion if below else other_formats(names_in(directory))
        return f"the directory {shown!r} has no adapter_config.json{hint}"


@dataclass
class _Scan:
    """A breadth-first walk over one root."""

    roots: AdapterRoots
    root: Path
    limit: int
    seen: set[Path] = field(default_factory=set)
    scanned: int = 0

    def names(self) -> Iterator[str]:
        if self._is_adapter(self.root):
            yield root_name(self.root)
        level = [self.root]
        for _ in range(MAX_DEPTH):
            below: list[Path] = []
            for directory in level:
                yield from self._adapters_in(directory, below)
            level = below

    def _adapters_in(self, directory: Path, below: list[Path]) -> Iterator[str]:
        """The adapters directly in `directory`; appends the subdirectories to scan next to `below`."""
        for entry in self._subdirectories(directory):
            if directory == self.root and entry.name.startswith(HUB_PREFIX):
                name = entry.name.removeprefix(HUB_PREFIX).replace(HUB_SEPARATOR, "/", 1)
                if (path := _snapshot(self.root, PurePosixPath(name))) is not None and self._is_adapter(path):
                    yield name
                continue
            if self._is_adapter(entry):
                yield str(entry.relative_to(self.root))
            below.append(entry)

    def _subdirectories(self, directory: Path) -> list[Path]:
        """The subdirectories that may be scanned; each real directory is scanned once."""
        real = directory.resolve()
        if real in self.seen or self.scanned >= self.limit:
            return []
        self.seen.add(real)
        self.scanned += 1
        try:
            with os.scandir(directory) as entries:
                subdirectories = [entry for entry in entries if not entry.name.startswith(".") and _is_directory(entry)]
        except OSError:  # removed meanwhile, or not readable
            return []
        paths = (Path(entry.path) for entry in subdirectories)
        return sorted(path for path in paths if self._is_inside(path))

    def _is_inside(self, path: Path) -> bool:
        """Whether `path` is inside the roots; records a link that leads out."""
        if not path.is_symlink() or self.roots.admits(path):
            return True
        if len(self.roots.outside_links) < MAX_OUTSIDE_LINKS:
            self.roots.outside_links.setdefault(path, False)
        return False

    def _is_adapter(self, directory: Path) -> bool:
        try:
            has_config = (directory / CONFIG_FILE).is_file()
            return has_config and all(self._is_inside(directory / name) for name in (CONFIG_FILE, WEIGHTS_FILE))
        except OSError:
            return False


def root_name(root: Path) -> str:
    """The adapter name of `root`, if the root itself is an adapter."""
    return Path(os.path.abspath(root)).name


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _snapshot(root: Path, name: PurePosixPath) -> Path | None:
    """The snapshot of hub repository `name` in the hub cache `root`: that of `main`, else the newest."""
    if len(name.parts) != 2:
        return None
    repository = root / (HUB_PREFIX + HUB_SEPARATOR.join(name.parts))
    try:
        snapshots = [path for path in (repository / "snapshots").iterdir() if path.is_dir()]
        main = repository / "refs" / "main"
        commit = read_regular(main, 256).decode(errors="replace").strip() if main.exists() else ""
    except (OSError, ValueError):
        return None
    of_main = [path for path in snapshots if path.name == commit]
    return max(of_main or snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _not_found(name: str, reason: str = "") -> NotFound:
    excerpt = name if len(name) <= 200 else f"{name[:200]}…"
    return NotFound(f"no adapter {excerpt!r}" + (f": {reason}" if reason else ""), param="model")
