"""Adapter sources for directories on this machine: the base class of `local` and `demo`.

Handles names, roots and file metadata. It opens no adapter file: the loader refuses broken adapters.
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
"""The files of an adapter that the loader or the chat template finders read."""

RESPONSE_SECONDS = 5.0

T = TypeVar("T")


class DirectoryAdapters(AdapterSource):
    """Adapters in subdirectories of roots: `NAME` is `ROOT/NAME` in the first root that has it.

    The revision is a hash over the names, sizes and times of the files. Only the current revision can be requested.
    `NAME@REVISION` means the directory of that name if there is one. Every caller may use every adapter.
    """

    local_files = True

    def __init__(self, source: str, roots: Sequence[Path], follow_links: bool = False) -> None:
        self.source = source
        self.roots = AdapterRoots(roots, follow_links)
        self._calls = BlockingCalls(f"{source}-files")

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """The current revision. Raises NotFound, Unavailable, and AdapterRefused if a file links out of the roots."""
        return await self._with_timeout(ref.id, lambda: ResolvedAdapter(ref, self._locate(ref)[1]))

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        """The adapter's directory. Raises as `resolve` does, and Unavailable if a file has changed since then."""
        directory, revision = await self._with_timeout(adapter.ref.id, lambda: self._locate(adapter.ref))
        if revision != adapter.revision:
            raise _changed(adapter.ref)
        return directory

    async def listing(self) -> Sequence[AdapterListing]:
        """Every adapter in the roots; those directly in a root have their name as an alias."""
        names = await self._calls.run(None, self.roots.adapter_names)
        self._report_links()
        return [
            AdapterListing(AdapterRef(self.source, name), alias=None if "/" in name else name) for name in sorted(names)
        ]

    def _report_links(self) -> None:
        """Log each link that leads out of the roots once."""
        for link, reported in self.roots.outside_links.items():
            if not reported:
                logger.warning(
                    "adapter source {}: {} is not listed: it is a link that leads out of the adapter roots; "
                    "--follow-links lets the server follow it",
                    self.source,
                    link,
                )
                self.roots.outside_links[link] = True

    async def _with_timeout(self, key: Hashable, work: Callable[[], T]) -> T:
        """`work()` in a thread. Raises Unavailable if the files do not respond, as on a disconnected mount."""
        try:
            async with asyncio.timeout(RESPONSE_SECONDS):
                return await self._calls.run(key, work)
        except TimeoutError:
            raise Unavailable(
                f"{self.source}:{key}: the files did not respond within {RESPONSE_SECONDS:g} s; check the mount",
                param="model",
                code=error_codes.SOURCE_UNAVAILABLE,
            ) from None

    def _locate(self, ref: AdapterRef) -> tuple[Path, str]:
        """The directory of `ref`, and its revision."""
        if ref.revision is None:
            directory = self.roots.find(ref.id)
            return directory, self._revision(ref, directory)
        try:
            directory = self.roots.find(f"{ref.id}@{ref.revision}")
        except NotFound:
            directory = self.roots.find(ref.id)
            revision = self._revision(ref, directory)
            if ref.revision != revision:
                raise NotFound(
                    f"{self.source}:{ref.id} has no revision {ref.revision}; its current revision is {revision}",
                    param="model",
                ) from None
            return directory, revision
        return directory, self._revision(ref, directory)

    def _revision(self, ref: AdapterRef, directory: Path) -> str:
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
                status = (directory / name).stat()
                # The change time catches a file that was replaced by one of the same size and modification time.
                digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n".encode())
        except FileNotFoundError:
            raise _changed(ref) from None
        except OSError as error:
            raise NotFound(f"{directory.name} cannot be read: {error.strerror}", param="model") from error
        return digest.hexdigest()[:40]


def _changed(ref: AdapterRef) -> Unavailable:
    return Unavailable(
        f"{ref} changed while it was being loaded; try again", param="model", code=error_codes.ADAPTER_CHANGED
    )
