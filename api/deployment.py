"""What the supervisor tells an API worker: the settings, the model, and where the other processes are."""

from __future__ import annotations

import msgspec

from motet.core.settings import Settings


class Deployment(msgspec.Struct, frozen=True):
    """`socket` is the inherited listening socket's file descriptor; `address` is how a local client reaches it."""

    settings: Settings
    model_directory: str
    model_name: str
    engine_address: str
    loader_address: str
    state_address: str
    socket: int
    address: str
