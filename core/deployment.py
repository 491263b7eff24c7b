"""The configuration that the supervisor passes to API processes: settings, model, and addresses."""

from __future__ import annotations

import msgspec

from motet.core.settings import Settings


class Deployment(msgspec.Struct, frozen=True):
    """The configuration of one API process.

    `socket` is the file descriptor of the inherited listening socket; `address` is its URL for local clients.
    `index` is the number of this process among `workers` API processes. If there are several, the adapter registry is
    a separate process at `registry_address`, and shared counters are in `run_directory`. The process with `announce`
    logs when the server is ready.
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
