"""The messages between `motet check` and the process that checks the adapters."""

from __future__ import annotations

from typing import Any

import msgspec


class CheckRequest(msgspec.Struct, frozen=True):
    """Check the adapters in `directories`; `loader` is the LoaderSpec with which the server would load them."""

    loader: Any
    directories: tuple[str, ...]


class Verdict(msgspec.Struct, frozen=True):
    """Whether the adapter in `directory` can be served; if not, `message` says why and what to do.

    `param` is the field of adapter_config.json that is wrong, if there is one.
    """

    directory: str
    fits: bool
    message: str = ""
    param: str | None = None
    warnings: tuple[str, ...] = ()
