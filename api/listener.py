"""Hypercorn as the API's processes use it: on the supervisor's socket, with limits, and without idle leftovers."""

from __future__ import annotations

import socket

from hypercorn.asyncio import run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config, Sockets
from hypercorn.events import Event, Updated

from motet.core.settings import Settings

LAST_WORDS_SECONDS = 0.5
"""What requests that outlived the drain get for sending their error."""

KEEP_ALIVE_SECONDS = 75

LISTEN_QUEUE = 1024
"""Connections that the kernel keeps until one is taken."""


class _Listener(socket.socket):
    """The supervisor's socket. It keeps its queue when asyncio asks for one as long as what it takes in one turn."""

    def listen(self, backlog: int = LISTEN_QUEUE, /) -> None:
        super().listen(LISTEN_QUEUE)


class ListenerConfig(Config):
    """Hypercorn's, on a socket that exists; in each turn of the loop a worker takes one connection.

    Taking as many as there are, the first of several workers to wake up would have most of a burst to itself.
    """

    def __init__(self, descriptor: int, settings: Settings) -> None:
        super().__init__()
        self.backlog = 1
        self.keep_alive_timeout = KEEP_ALIVE_SECONDS
        self.graceful_timeout = LAST_WORDS_SECONDS
        self.h11_max_incomplete_size = 64 << 10
        self.loglevel = "WARNING"
        self.certfile = settings.tls_certificate or None
        self.keyfile = settings.tls_key or None
        self._descriptor = descriptor

    def create_sockets(self) -> Sockets:
        """The listening socket."""
        sockets: list[socket.socket] = [_Listener(fileno=self._descriptor)]
        return Sockets(sockets, [], []) if self.ssl_enabled else Sockets([], sockets, [])


class Connection(TCPServer):
    """Hypercorn's, but gone when its client is.

    Hypercorn's own keeps the socket of a client that left until the idle time is over.
    """

    _left = False

    async def protocol_send(self, event: Event) -> None:
        """Send, or take note; nobody waits for the next request of a client that left."""
        if not (self._left and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()


setattr(run, "TCPServer", Connection)  # noqa: B010 (the module does not export the name, and uses it)
