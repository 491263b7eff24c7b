"""The interface of the adapter registry, in the same process or in another one.

    name ──find──> AdapterRef ──serve──> ServedAdapter, authorised, fetched and prepared

`local_registry.py` implements them; `remote_registry.py` calls them in another process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import msgspec

from motet.core.adapter_source import AdapterListing, AdapterRef, ResolvedAdapter
from motet.core.messages import PreparedAdapter


class ServedAdapter(msgspec.Struct, frozen=True):
    """An adapter that the caller may use: its reference, its files, and their prepared form.

    For a merge, `ref` and `directory` are those of the first adapter, and so are chat template and end-of-text ids.
    """

    ref: AdapterRef
    directory: Path
    prepared: PreparedAdapter


class AdapterRegistry(ABC):
    """Finds, authorises and loads adapters. Every method raises Unavailable if the registry process exits.

    Arguments and results must be types that msgspec can encode: `remote_registry.py` sends them to another process.
    `owner` is the caller's API key; limits hold per owner.
    """

    @abstractmethod
    async def find(self, model: str, source: str | None) -> AdapterRef | None:
        """Return the adapter called `model`, None for the base model; `source` is the request's adapter_source.

        Raises NotFound for a name that cannot be an adapter, InvalidRequest for an unknown source and for an
        alias that two sources use. Calls sources only for listings.
        """

    @abstractmethod
    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """Return the current revision of `ref`, if `token` may use it; loads nothing. Raises as `serve` does."""

    @abstractmethod
    async def serve(self, ref: AdapterRef, token: str | None, owner: str = "") -> ServedAdapter:
        """Authorise `token` for `ref` and load it.

        Raises NotFound, Unauthenticated, Forbidden, AdapterRefused, Overloaded or Unavailable. After a failure
        that does not depend on the caller's token, the load is not retried for some seconds.
        """

    @abstractmethod
    async def serve_merged(
        self, parts: Sequence[tuple[AdapterRef, float]], tokens: Sequence[str | None], owner: str = ""
    ) -> ServedAdapter:
        """Load the weighted sum of `parts`, each authorised for its own token.

        Raises as `serve` does for the first part that fails, naming it; InvalidRequest for no parts, more than
        MAX_PARTS, or a weight that is not finite; AdapterRefused if the sum of the LoRA ranks is too large;
        Overloaded if `owner` has made too many new merges.
        """

    @abstractmethod
    async def listing(self) -> Sequence[AdapterListing]:
        """Return all listed adapters, sorted by canonical id, with their unambiguous aliases."""
