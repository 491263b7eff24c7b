"""The scripted API behind a real Hypercorn on a free port, in the caller's event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypercorn.asyncio import serve
from quart import Quart
from support.scripted_api import Scripted, scripted_api

from motet.api.app import create_app
from motet.api.http import hypercorn_patches
from motet.api.http.listener import ListenerConfig
from motet.core.settings import Settings


@dataclass
class Running:
    """A server that listens at `url`."""

    api: Scripted
    app: Quart
    url: str
    port: int


@asynccontextmanager
async def scripted_server(root: Path, settings: Settings | None = None) -> AsyncIterator[Running]:
    """Serve until the block ends; `root` is an empty directory."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    done = asyncio.Event()
    hypercorn_patches.apply()
    async with scripted_api(root, settings) as api:
        config = ListenerConfig(listener.detach(), api.services.settings)
        config.accesslog = config.errorlog = None
        config.graceful_timeout = 0.2
        app = create_app(api.services)
        server = asyncio.create_task(serve(app, config, shutdown_trigger=done.wait))
        try:
            scheme = "https" if config.ssl_enabled else "http"
            yield Running(api, app, f"{scheme}://127.0.0.1:{port}", port)
        finally:
            done.set()
            await server
