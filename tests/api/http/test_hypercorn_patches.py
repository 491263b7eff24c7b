"""Hypercorn's patches fit the pinned release, and are applied by the worker, never by an import."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypercorn import protocol
from hypercorn.asyncio import run, tcp_server
from hypercorn.protocol import h2, h11, ws_stream

from motet.api.http import hypercorn_patches

# What the subclasses override or rely on, and where Hypercorn looks up the replaced names: sha256 of the source.
KNOWN: dict[str, tuple[Callable[..., object], str]] = {
    "TCPServer": (tcp_server.TCPServer, "3bfa72b319509f2b02a757c59348721eb890e6db97fe21ccd7fd08541f2f4ee5"),
    "worker_serve": (run.worker_serve, "ae30269c42b954423c2b8c9f1300be2663d269dccdde3e85fb785b328ea4b2ef"),
    "ProtocolWrapper": (protocol.ProtocolWrapper, "caf949187e9b4a816ad4a5f0229773ec01190a6051f6205807de599870c16c17"),
    "H11Protocol": (h11.H11Protocol, "b32a61e0a8ca2127c7e1cb133281521f6cc73fdefb94b188fb6944e80b175b43"),
    "H2Protocol": (h2.H2Protocol, "7257f8bafccaa2e5677c63696eef2777854fd65f2721f3408c6c963398a15145"),
    "WSStream": (ws_stream.WSStream, "67434c428a1a3c04f930fd5fbd39074659cfe666d9aad1a44a41f78c12e2d303"),
}
CHECK_AGAIN = {
    "TCPServer": "api/http/connection.py overrides protocol_send, _read_data, _close, _initiate_server_close and "
    "_idle_timeout",
    "worker_serve": "api/http/hypercorn_patches.py replaces the TCPServer that it makes of each connection",
    "ProtocolWrapper": "api/http/hypercorn_patches.py replaces the H11Protocol and H2Protocol that it makes",
    "H11Protocol": "api/http/http1.py overrides stream_send; api/http/websockets.py replaces its WSStream",
    "H2Protocol": "api/http/http2.py overrides initiate, handle, stream_send and _handle_events, and uses "
    "stream_buffers, streams, _flush, _close_stream and _window_updated; api/http/websockets.py replaces its WSStream",
    "WSStream": "api/http/websockets.py overrides idle and handle",
}

IMPORT_EVERYTHING = """
import importlib, pkgutil
from hypercorn import protocol
from hypercorn.asyncio import run
from hypercorn.protocol import h2, h11
places = [(run, "TCPServer"), (protocol, "H11Protocol"), (protocol, "H2Protocol"), (h11, "WSStream"), (h2, "WSStream")]
before = [getattr(module, name) for module, name in places]
import motet.api
for found in pkgutil.walk_packages(motet.api.__path__, "motet.api."):
    importlib.import_module(found.name)
assert [getattr(module, name) for module, name in places] == before, "an import patches Hypercorn"
from motet.api.http import hypercorn_patches
hypercorn_patches.apply()
assert all(getattr(module, name).__module__.startswith("motet.api.http.") for module, name in places)
"""


@pytest.mark.parametrize("name", KNOWN)
def test_hypercorn_is_what_the_patches_were_written_for(name: str) -> None:
    replaced, digest = KNOWN[name]
    found = hashlib.sha256(inspect.getsource(replaced).encode()).hexdigest()
    assert found == digest, f"Hypercorn's {name} has changed: {CHECK_AGAIN[name]}. Check them, then update the digest"


def test_every_patch_extends_what_it_replaces() -> None:
    for _, name, replacement in hypercorn_patches.PATCHES:
        base = replacement.__mro__[1]
        assert (base.__name__, base) == (name, KNOWN[name][0])


def test_imports_patch_nothing_and_apply_patches_all() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
