"""What the supervisor passes to API processes: the settings, the model, and the addresses of other processes."""

from __future__ import annotations

import msgspec

from motet.core.settings import Settings


class Deployment(msgspec.Struct, frozen=True):
    """`socket` is the inherited listening socket's file descriptor; `address` is how a local client reaches it.

    `index` says which of the `workers` API processes this is. With more than one, the adapter registry is a process of
    its own at `registry_address`, and they count together under `run_directory`. The process that is to `announce`
    says when the server is up.
    """

    settings: Settings
    model_directory: str
    model_name: str
    engine_address: str
    loader_address: str
    state_address: str
    socket: int
    address: str
    registry_address: str = ""
    run_directory: str = ""
    index: int = 0
    workers: int = 1
    announce: bool = True
    model_aliases: tuple[str, ...] = ()
