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
    """What a reference means now. `revision` changes whenever the files do; it keys the copy on disk.

    `used_credentials`: the source used credentials of its own for a caller without a token, so that the answer does
    not show that everybody may read the adapter.
    """

    ref: AdapterRef
    revision: str
    used_credentials: bool = False


class AdapterListing(msgspec.Struct, frozen=True):
    """An adapter that a source can name unasked; `alias` is a short name, if it has one."""

    ref: AdapterRef
    alias: str | None = None


class AdapterSource(ABC):
    """One place that adapters come from. Methods run in the server's event loop: block in threads only.

    `local_files`: `resolve` is cheap and looks at files of this machine, so it is called for every request, and a
    changed file is seen at once. `max_adapter_bytes`, which the server sets before any `fetch`, is the size of the
    largest file of weights that it could load: fetch no larger one.
    """

    local_files: bool = False
    max_adapter_bytes: int = 8 << 30

    def configure(self, settings: Settings) -> None:  # noqa: B027 (most sources need no settings)
        """Take what this source needs from the server's settings; called once, before any other method.

        Raises StartupError naming the setting that is wrong.
        """

    @abstractmethod
    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """Find `ref` and check that `token` (the caller's, for this source) may use it.

        The server keeps the answer for this token for `--authorisation-seconds`, and serves an older one while this
        fails. Raises NotFound, Unauthenticated or Forbidden, each of which ends what was granted; Unavailable when
        the place cannot be reached (any exception that is not a MotetError counts as that); SourceOffline when it
        is set to stay offline.
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
