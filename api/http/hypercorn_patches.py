"""All that Motet replaces in Hypercorn's modules; the worker applies it before it serves.

Hypercorn has no settings for these classes, so their names are replaced where Hypercorn looks them up. Each subclass
overrides private methods: tests/api/http/test_hypercorn_patches.py fails when a release of Hypercorn changes them.
"""

from __future__ import annotations

from types import ModuleType

from hypercorn import protocol
from hypercorn.asyncio import run
from hypercorn.protocol import h2, h11

from motet.api.http.connection import Connection
from motet.api.http.http1 import Http1Connection
from motet.api.http.http2 import Http2Connection
from motet.api.http.websockets import RefusedWebSocket

PATCHES: tuple[tuple[ModuleType, str, type], ...] = (
    (run, "TCPServer", Connection),
    (protocol, "H11Protocol", Http1Connection),
    (protocol, "H2Protocol", Http2Connection),
    (h11, "WSStream", RefusedWebSocket),
    (h2, "WSStream", RefusedWebSocket),
)
"""(module, name in it, the subclass that replaces it)"""


def apply() -> None:
    """Replace Hypercorn's classes in this process; calling it again changes nothing."""
    for module, name, replacement in PATCHES:
        setattr(module, name, replacement)
