"""Adapters that lie in directories on this machine: what `local` and `demo` have in common.

Knows names, roots and file stamps; never opens a file, so a broken adapter is the loader's to refuse.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

from loguru import logger

from motet.core import error_codes
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.blocking_calls import BlockingCalls
from motet.core.errors import AdapterRefused, NotFound, Unavailable
from motet.plugins.sources.adapter_roots import CONFIG_FILE, WEIGHTS_FILE, AdapterRoots

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, "generation_config.json", *TOKENIZER_FILES, *TEMPLATE_FILES)
"""All that is read of an adapter, by the loader or by template finders."""

RESPONSE_SECONDS = 5.0

T = TypeVar("T")


class DirectoryAdapters(AdapterSource):
    """Adapters as sub-directories of some roots: `NAME` is `ROOT/NAME` in the first root that has it.

    The revision is a hash over names, sizes and times of the files, so that it changes when a file does.
    A revision that is not the present one is a NotFound. A directory called `name@revision` goes before a revision.
    Every caller may use every adapter.
    """

    local_files = True

    def __init__(self, source: str, roots: Sequence[Path], follow_links: bool = False) -> None:
        self.source = source
        self.roots = AdapterRoots(roots, follow_links)
        self._calls = BlockingCalls(f"{source}-files")

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """The adapter as it is now. Raises NotFound, AdapterRefused if a file leads out of the roots, Unavailable."""
        return await self._in_time(ref.id, lambda: ResolvedAdapter(ref, self._look(ref)[1]))

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        """The adapter's own directory. Raises as `resolve` does, and Unavailable if it has changed since."""
        directory, revision = await self._in_time(adapter.ref.id, lambda: self._look(adapter.ref))
        if revision != adapter.revision:
            raise _changed(adapter.ref)
        return directory

    async def listing(self) -> Sequence[AdapterListing]:
        """Every adapter in the roots; those directly in a root have their name as alias."""
        names = await self._calls.run(None, self.roots.listed)
        self._report_links()
        return [
            AdapterListing(AdapterRef(self.source, name), alias=None if "/" in name else name) for name in sorted(names)
        ]

    def _report_links(self) -> None:
        """Log each link that is not listed, once."""
        for link, reported in self.roots.outside.items():
            if not reported:
                logger.warning(
                    "adapter source {}: {} is not listed: it is a link that leads out of the adapter roots; "
                    "--follow-links lets the server follow it",
                    self.source,
                    link,
                )
                self.roots.outside[link] = True

    async def _in_time(self, key: Hashable, look: Callable[[], T]) -> T:
        """`look()` in a thread. Raises Unavailable where the files do not respond, as on a mount that is away."""
        try:
            async with asyncio.timeout(RESPONSE_SECONDS):
                return await self._calls.run(key, look)
        except TimeoutError:
            raise Unavailable(
                f"{self.source}:{key}: the files did not respond within {RESPONSE_SECONDS:g} s; check the mount",
                param="model",
                code=error_codes.SOURCE_UNAVAILABLE,
            ) from None

    def _look(self, ref: AdapterRef) -> tuple[Path, str]:
        """The directory that `ref` means, and its revision."""
        if ref.revision is None:
            directory = self.roots.find(ref.id)
            return directory, self._stamp(ref, directory)
        try:
            directory = self.roots.find(f"{ref.id}@{ref.revision}")
        except NotFound:
            directory = self.roots.find(ref.id)
            revision = self._stamp(ref, directory)
            if ref.revision != revision:
                raise NotFound(
                    f"{self.source}:{ref.id} is at revision {revision} now, not {ref.revision}", param="model"
                ) from None
            return directory, revision
        return directory, self._stamp(ref, directory)

    def _stamp(self, ref: AdapterRef, directory: Path) -> str:
        """A hash that changes whenever one of the adapter's files does. Raises AdapterRefused, Unavailable."""
        try:
            names = sorted(path.name for path in directory.iterdir() if path.name in ADAPTER_FILES)
            digest = hashlib.sha256()
            for name in names:
                if not self.roots.admits(directory / name):
                    raise AdapterRefused(
                        f"{name} of {directory.name} is a link that leads out of the adapter roots; "
                        "--follow-links lets the server follow it",
                        param="model",
                    )
                state = (directory / name).stat()
                # The change time catches a file that was replaced by one of the same size and modification time.
                digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}\n".encode())
        except FileNotFoundError:
            raise _changed(ref) from None
        except OSError as error:
            raise NotFound(f"{directory.name} cannot be read: {error.strerror}", param="model") from error
        return digest.hexdigest()[:40]


def _changed(ref: AdapterRef) -> Unavailable:
    return Unavailable(f"{ref} has just changed; try again", param="model", code=error_codes.ADAPTER_CHANGED)
