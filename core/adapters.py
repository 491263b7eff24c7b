"""Adapters by name, and the sources that resolve and fetch them.

    named ──resolve──> ResolvedAdapter ──fetch──> a directory on disk

A source says what an id means right now (an immutable revision), checks that this caller may use it, and
copies the files. It never parses weights: that is the loader's work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import msgspec

from motet.core.settings import Settings


class AdapterRef(msgspec.Struct, frozen=True):
    """An adapter as a request names it: `source:id@revision`."""

    source: str
    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.id}" + (f"@{self.revision}" if self.revision else "")


class ResolvedAdapter(msgspec.Struct, frozen=True):
    """What a reference means now. `revision` changes whenever the files do; it keys the copy on disk."""

    ref: AdapterRef
    revision: str


class AdapterListing(msgspec.Struct, frozen=True):
    """An adapter that a source can name unasked; `alias` is a short name, if it has one."""

    ref: AdapterRef
    alias: str | None = None


class AdapterSource(ABC):
    """One place that adapters come from. Methods run in the server's event loop: block in threads only."""

    def configure(self, settings: Settings) -> None:  # noqa: B027 (most sources need no settings)
        """Take what this source needs from the server's settings; called once, before any other method.

        Raises StartupError naming the setting that is wrong.
        """

    @abstractmethod
    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """Find `ref` and check that `token` (the caller's, for this source) may use it.

        Called for every request, so that a revoked token stops working. Raises NotFound, Unauthenticated,
        Forbidden, or Unavailable when the place cannot be reached.
        """

    @abstractmethod
    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        """Make the adapter's files available and return their directory.

        `into` is an empty directory that this call may fill; a source whose files already lie on a local
        disk returns their own directory instead. Raises as `resolve` does.
        """

    async def listing(self) -> Sequence[AdapterListing]:
        """The adapters that can be named up front, for GET /v1/models; empty where the place is too large."""
        return ()
