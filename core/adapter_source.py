"""References to adapters, and the interface of the sources that resolve and fetch them.

    AdapterRef ──resolve──> ResolvedAdapter ──fetch──> a directory on disk

A source resolves an id to its current immutable revision, checks that the caller may use it, and copies the files.
It does not parse weights: the loader does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import msgspec

from motet.core.settings import Settings


class AdapterRef(msgspec.Struct, frozen=True):
    """A reference to an adapter: `source:id@revision`."""

    source: str
    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.id}" + (f"@{self.revision}" if self.revision else "")


class ResolvedAdapter(msgspec.Struct, frozen=True):
    """A reference with its current revision. `revision` changes whenever the files do; it keys the copy on disk.

    `used_credentials`: the source used its own credentials for a caller without a token. The result then does not
    show that the adapter is public.
    """

    ref: AdapterRef
    revision: str
    used_credentials: bool = False


class AdapterListing(msgspec.Struct, frozen=True):
    """An adapter in a source's listing; `alias` is its short name, if it has one."""

    ref: AdapterRef
    alias: str | None = None


class AdapterSource(ABC):
    """A source of adapters. Methods run in the server's event loop: block only in threads.

    `local_files`: `resolve` is cheap and checks local files, so the server calls it for every request and notices a
    changed file at once. `max_adapter_bytes` is the size of the largest weights file that the server can load. The
    server sets it before any `fetch`; do not fetch a larger file.
    """

    local_files: bool = False
    max_adapter_bytes: int = 8 << 30

    def configure(self, settings: Settings) -> None:  # noqa: B027 (most sources need no settings)
        """Read the server's settings; called once, before any other method.

        Raises StartupError naming the invalid setting.
        """

    @abstractmethod
    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """Find `ref` and check that `token` (the caller's, for this source) may use it.

        The server caches the result for this token for `--authorisation-seconds`, and uses an older result while
        this method fails. Raises NotFound, Unauthenticated or Forbidden, which end an earlier grant; Unavailable if
        the source cannot be reached (any exception that is not a MotetError counts as that); SourceOffline if the
        source is configured to stay offline.
        """

    @abstractmethod
    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        """Make the adapter's files available and return their directory.

        `into` is an empty directory for the files. If the files are already on a local disk, return their directory
        instead. Raises as `resolve` does.
        """

    async def listing(self) -> Sequence[AdapterListing]:
        """The adapters to list in GET /v1/models; empty if the source has too many to list."""
        return ()
