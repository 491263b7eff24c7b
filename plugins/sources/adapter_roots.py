"""Root directories with adapters: which directory a name means, which links may be followed, and what is listed.

    NAME                 ROOT/NAME, also nested: team/run/checkpoint-500
    the root's own name  ROOT, where it is an adapter itself
    org/name             a snapshot of ROOT/models--org--name, where ROOT is a Hugging Face hub cache
    /absolute/path       a directory inside a root

A link may lead to any place inside the roots, or anywhere with `follow_links`. Opens no file but a hub cache's refs.
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
"""Directories that one listing looks into."""

MAX_SCANNED_FOR_ERROR = 200
MAX_NOTED = 20
MAX_NAMED = 3
"""Adapters below a directory that an error names."""


class AdapterRoots:
    """The directories `paths`, in the order in which names are looked up."""

    def __init__(self, paths: Sequence[Path], follow_links: bool = False) -> None:
        self.paths = tuple(paths)
        self.follow_links = follow_links
        self.outside: dict[Path, bool] = {}
        """Links that lead out of the roots, as listings met them, and whether they have been reported."""

    def admits(self, path: Path) -> bool:
        """Whether `path`, its links followed, may be read: it lies in a root, or links may lead anywhere."""
        real = path.resolve()
        return self.follow_links or any(real.is_relative_to(root.resolve()) for root in self.paths)

    def find(self, name: str) -> Path:
        """The directory of the adapter called `name`. Raises NotFound saying what is there instead."""
        path = PurePosixPath(name)
        # One name per adapter: another spelling would be another adapter to everything that counts them.
        if name != str(path) or ".." in path.parts or name == ".":
            raise _unknown(name, "not the name of a directory: leave out '..', '.' and needless slashes")
        if not self.paths:
            raise _unknown(name, "the server has no --adapter-root")
        obstacle = ""
        for root in self.paths:
            for directory in self._candidates(root, path):
                with contextlib.suppress(OSError, ValueError):  # a name that no file can have
                    if not self.admits(directory):
                        obstacle = obstacle or self._link(root, directory)
                    elif (directory / CONFIG_FILE).is_file():
                        return directory.resolve()
                    elif directory.is_dir():
                        obstacle = obstacle or self._empty(root, directory)
        if obstacle:
            raise _unknown(name, obstacle)
        if path.is_absolute():
            raise _unknown(name, "the path lies in none of the server's --adapter-root directories")
        raise _unknown(name)

    def listed(self) -> list[str]:
        """The names of all adapters, the nearest ones first, as far as MAX_DEPTH and MAX_SCANNED go."""
        names: dict[str, None] = {}
        for root in self.paths:
            names.update(dict.fromkeys(_Scan(self, root, MAX_SCANNED).names()))
        return list(names)

    def _candidates(self, root: Path, path: PurePosixPath) -> Iterator[Path]:
        """Where in `root` the adapter called `path` may be."""
        if path.is_absolute():
            for base in (root.absolute(), root.resolve()):
                if Path(path).is_relative_to(base):
                    yield Path(path)
                    return
            return
        yield root / path
        if str(path) == own_name(root):
            yield root
        if (snapshot := _snapshot(root, path)) is not None:
            yield snapshot

    def _link(self, root: Path, directory: Path) -> str:
        """Which link on the way to `directory` leads out of the roots, and what to do."""
        place = directory
        if directory.is_relative_to(root):
            place = root
            for step in directory.relative_to(root).parts:
                place = place / step
                if not self.admits(place):
                    break
        name = place.relative_to(root) if place.is_relative_to(root) and place != root else place.name
        return f"{name} is a link that leads out of the adapter roots; --follow-links lets the server follow it"

    def _empty(self, root: Path, directory: Path) -> str:
        """Why `directory`, which has no config, is not an adapter, and which adapters are below it."""
        below = list(itertools.islice(_Scan(self, directory, MAX_SCANNED_FOR_ERROR).names(), MAX_NAMED))
        shown = directory.name if directory != root else "the adapter root"
        named = f"; there are adapters below it: {', '.join(below)}"
        hint = named if below else other_formats(names_in(directory))
        return f"the directory {shown!r} has no adapter_config.json{hint}"


@dataclass
class _Scan:
    """One walk over a root, breadth first."""

    roots: AdapterRoots
    root: Path
    limit: int
    seen: set[Path] = field(default_factory=set)
    scanned: int = 0

    def names(self) -> Iterator[str]:
        if self._is_adapter(self.root):
            yield own_name(self.root)
        level = [self.root]
        for _ in range(MAX_DEPTH):
            below: list[Path] = []
            for directory in level:
                yield from self._in(directory, below)
            level = below

    def _in(self, directory: Path, below: list[Path]) -> Iterator[str]:
        """The adapters directly in `directory`; sub-directories to look into go to `below`."""
        for entry in self._directories(directory):
            if directory == self.root and entry.name.startswith(HUB_PREFIX):
                name = entry.name.removeprefix(HUB_PREFIX).replace(HUB_SEPARATOR, "/", 1)
                if (path := _snapshot(self.root, PurePosixPath(name))) is not None and self._is_adapter(path):
                    yield name
                continue
            if self._is_adapter(entry):
                yield str(entry.relative_to(self.root))
            below.append(entry)

    def _directories(self, directory: Path) -> list[Path]:
        """The sub-directories that may be looked into; each real directory is walked once."""
        real = directory.resolve()
        if real in self.seen or self.scanned >= self.limit:
            return []
        self.seen.add(real)
        self.scanned += 1
        try:
            with os.scandir(directory) as entries:
                named = [entry for entry in entries if not entry.name.startswith(".") and _is_directory(entry)]
        except OSError:  # a directory that was there a moment ago, or may not be read
            return []
        found = (Path(entry.path) for entry in named)
        return sorted(path for path in found if self._stays(path))

    def _stays(self, path: Path) -> bool:
        """Whether `path` stays inside the roots; notes a link that does not."""
        if not path.is_symlink() or self.roots.admits(path):
            return True
        if len(self.roots.outside) < MAX_NOTED:
            self.roots.outside.setdefault(path, False)
        return False

    def _is_adapter(self, directory: Path) -> bool:
        try:
            found = (directory / CONFIG_FILE).is_file()
            return found and all(self._stays(directory / name) for name in (CONFIG_FILE, WEIGHTS_FILE))
        except OSError:
            return False


def own_name(root: Path) -> str:
    """What `root` is called where it is an adapter itself."""
    return Path(os.path.abspath(root)).name


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _snapshot(root: Path, name: PurePosixPath) -> Path | None:
    """The snapshot of hub repository `name` in the hub cache `root`: the one that `main` names, else the newest."""
    if len(name.parts) != 2:
        return None
    home = root / (HUB_PREFIX + HUB_SEPARATOR.join(name.parts))
    try:
        snapshots = [path for path in (home / "snapshots").iterdir() if path.is_dir()]
        main = home / "refs" / "main"
        named = read_regular(main, 256).decode(errors="replace").strip() if main.exists() else ""
    except (OSError, ValueError):
        return None
    chosen = [path for path in snapshots if path.name == named]
    return max(chosen or snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _unknown(name: str, reason: str = "") -> NotFound:
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return NotFound(f"no adapter {shown!r}" + (f": {reason}" if reason else ""), param="model")
