"""Hypercorn as the API's processes use it: on the supervisor's socket, with limits, and without idle leftovers."""

from __future__ import annotations

import asyncio
import resource
import socket
from asyncio.trsock import TransportSocket
from contextlib import suppress
from typing import Any

from hypercorn.asyncio import run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config, Sockets
from hypercorn.events import Event, Updated

from motet.api import http2
from motet.core.settings import Settings

LAST_WORDS_SECONDS = 0.5
"""What requests that outlived the drain get for sending their error."""

KEEP_ALIVE_SECONDS = 75
FIRST_HEAD_SECONDS = 15
"""How long a new connection may take to say what it wants."""

LISTEN_QUEUE = 1024
"""Connections that the kernel keeps until one is taken."""

MAX_CONNECTIONS = 8192
SPARE_FILES = 0.25
"""The part of the files that a process may open which connections leave for everything else."""

IdleSockets = dict[int, socket.socket | TransportSocket]
"""Connections on which nothing is asked at present, by file descriptor, the one that is so for longest first."""

http2.install()


def most_connections() -> int:
    """How many connections a process may hold at once: fewer than it may open files."""
    return min(MAX_CONNECTIONS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * (1 - SPARE_FILES)))


class _Listener(socket.socket):
    """The supervisor's socket. It keeps its queue when asyncio asks for one as long as what it takes in one turn."""

    def __init__(self, descriptor: int, idle: IdleSockets) -> None:
        super().__init__(fileno=descriptor)
        self._idle = idle
        self._most = most_connections()

    def listen(self, backlog: int = LISTEN_QUEUE, /) -> None:
        super().listen(LISTEN_QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Where there are too many, the one that was idle for longest makes room for it."""
        connection, address = super().accept()
        _rest(self._idle, connection)
        # The kernel gives the lowest number that is free: one this high says how many are taken.
        while connection.fileno() >= self._most and self._idle:
            if _end(self._idle.pop(next(iter(self._idle)))):
                break
        return connection, address


def _rest(idle: IdleSockets, connection: socket.socket | TransportSocket) -> None:
    """Take note that nothing is asked on a connection from now on."""
    idle.pop(connection.fileno(), None)
    idle[connection.fileno()] = connection


def _end(connection: socket.socket | TransportSocket) -> bool:
    """End a connection as if its client had; False if it is no more."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


class ListenerConfig(Config):
    """Hypercorn's, on a socket that exists; in each turn of the loop a worker takes one connection.

    Taking as many as there are, the first of several workers to wake up would have most of a burst to itself.
    """

    def __init__(self, descriptor: int, settings: Settings) -> None:
        super().__init__()
        self.backlog = 1
        self.keep_alive_timeout = KEEP_ALIVE_SECONDS
        self.ssl_handshake_timeout = FIRST_HEAD_SECONDS
        self.graceful_timeout = LAST_WORDS_SECONDS
        self.h11_max_incomplete_size = 64 << 10
        self.loglevel = "WARNING"
        self.certfile = settings.tls_certificate or None
        self.keyfile = settings.tls_key or None
        self.idle: IdleSockets = {}
        self._descriptor = descriptor

    def create_sockets(self) -> Sockets:
        """The listening socket."""
        sockets: list[socket.socket] = [_Listener(self._descriptor, self.idle)]
        return Sockets(sockets, [], []) if self.ssl_enabled else Sockets([], sockets, [])


class Connection(TCPServer):
    """Hypercorn's, but gone when its client is, and soon where none says what it wants.

    Hypercorn's own keeps the socket of a client that left until the idle time is over.
    """

    config: ListenerConfig
    _left = False
    _asked = False

    async def protocol_send(self, event: Event) -> None:
        """Send, or take note; nobody waits for the next request of a client that left."""
        if isinstance(event, Updated):
            if self._left:
                return
            self._note(event.idle)
        await super().protocol_send(event)

    def _note(self, idle: bool) -> None:
        connection = self.writer.get_extra_info("socket")
        if not idle:
            self._asked = True
            self.config.idle.pop(connection.fileno(), None)
        elif connection.fileno() >= 0:
            _rest(self.config.idle, connection)

    async def _idle_timeout(self) -> None:
        seconds = KEEP_ALIVE_SECONDS if self._asked else FIRST_HEAD_SECONDS
        with suppress(TimeoutError):
            await asyncio.wait_for(self.context.terminated.wait(), seconds)
        await asyncio.shield(self._initiate_server_close())

    async def _read_data(self) -> None:
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()


setattr(run, "TCPServer", Connection)  # noqa: B010 (the module does not export the name, and uses it)
