"""Adapters that lie in directories on this machine: what `local` and `demo` have in common.

Knows names, roots and file stamps; never opens a file, so a broken adapter is the loader's to refuse.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from motet.core.adapters import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import AdapterRefused, NotFound, Unavailable
from motet.core.paths import inside

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = "adapter_model*.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHT_FILES, "tokenizer*", "chat_template*", "generation_config.json")
MAX_FILES = 64


def is_adapter_file(name: str) -> bool:
    """Whether a file of this name (no directories) belongs to an adapter and is worth reading."""
    return any(fnmatchcase(name, pattern) for pattern in ADAPTER_FILES)


class DirectoryAdapters(AdapterSource):
    """Adapters as sub-directories of some roots: `NAME` is `ROOT/NAME` in the first root that has it.

    The revision is a hash over names, sizes and times of the files, so that it changes when a file does.
    Asking for a revision that is not the present one is a NotFound. Every caller may use every adapter.
    """

    local_files = True

    def __init__(self, source: str, roots: Sequence[Path]) -> None:
        self.source = source
        self.roots = tuple(roots)

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """The adapter as it is now. Raises NotFound, or AdapterRefused if a file leads out of the root."""
        return await asyncio.to_thread(self._resolve, ref)

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        """The adapter's own directory. Raises as `resolve` does, and Unavailable if it has changed since."""
        now = await self.resolve(AdapterRef(self.source, adapter.ref.id), token)
        if now.revision != adapter.revision:
            raise Unavailable(f"{now.ref} has just changed; try again", param="model", code="adapter_changed")
        return self._find(adapter.ref.id)[1]

    async def listing(self) -> Sequence[AdapterListing]:
        """Every direct sub-directory of a root that holds an adapter, by its name as alias."""
        return await asyncio.to_thread(self._listing)

    def _listing(self) -> list[AdapterListing]:
        names = {name for root in self.roots for name in _adapter_names(root)}
        return [AdapterListing(AdapterRef(self.source, name), alias=name) for name in sorted(names)]

    def _resolve(self, ref: AdapterRef) -> ResolvedAdapter:
        root, directory = self._find(ref.id)
        revision = _stamp(root, directory)
        if ref.revision not in (None, revision):
            raise NotFound(f"{self.source}:{ref.id} is at revision {revision} now, not {ref.revision}", param="model")
        return ResolvedAdapter(ref, revision)

    def _find(self, name: str) -> tuple[Path, Path]:
        """The root and the directory of adapter `name`. Raises NotFound."""
        path = PurePosixPath(name)
        # One name for each adapter: another spelling would be another adapter to everything that counts them.
        if name == str(path) and ".." not in path.parts and not path.is_absolute():
            for root in self.roots:
                try:
                    directory = inside(root, name)
                    if directory is not None and (directory / CONFIG_FILE).is_file():
                        return root.resolve(), directory
                except (OSError, ValueError):  # a name that no file can have
                    continue
        raise NotFound(f"there is no adapter {name!r} at the source {self.source!r}", param="model")


def _adapter_names(root: Path) -> Iterator[str]:
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                stays = not entry.is_symlink() or inside(root, entry.name) is not None
                if stays and os.path.isfile(os.path.join(entry.path, CONFIG_FILE)):
                    yield entry.name
    except OSError:  # a root that was there at start-up and is not now has no adapters
        return


def _stamp(root: Path, directory: Path) -> str:
    """A hash that changes whenever one of the adapter's files does. Raises AdapterRefused."""
    try:
        names = sorted(path.name for path in directory.iterdir() if is_adapter_file(path.name))
        if len(names) > MAX_FILES:
            raise AdapterRefused(f"{directory.name} has more than {MAX_FILES} adapter files", param="model")
        digest = hashlib.sha256()
        for name in names:
            if not (directory / name).resolve().is_relative_to(root):
                raise AdapterRefused(f"{name} of {directory.name} is a link out of its root", param="model")
            state = (directory / name).stat()
            # The change time catches a file that was replaced by one of the same size and modification time.
            digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}\n".encode())
    except OSError as error:
        raise NotFound(f"{directory.name} cannot be read: {error.strerror}", param="model") from error
    return digest.hexdigest()[:40]
