"""Hypercorn as the API's processes use it: on the supervisor's socket, with limits, and without idle leftovers."""

from __future__ import annotations

import logging
import resource
import socket
from contextlib import suppress
from typing import Any

from hypercorn.config import Config, Sockets

from motet.core.settings import Settings

FINAL_ERROR_SECONDS = 0.5
"""What requests that outlived the drain get for sending their error."""

KEEP_ALIVE_SECONDS = 75
FIRST_REQUEST_SECONDS = 15
"""How long a new connection may take to say what it wants."""

LISTEN_QUEUE = 1024
"""Connections that the kernel keeps until one is taken."""

MAX_CONNECTIONS = 8192
SPARE_FILES = 0.25
"""The part of the files that a process may open which connections leave for everything else."""


def max_connections() -> int:
    """How many connections a process may hold at once: fewer than it may open files."""
    return min(MAX_CONNECTIONS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * (1 - SPARE_FILES)))


class ConnectionLimiter:
    """The open connections of one process, by file descriptor. Where there are too many, an idle one has to go."""

    def __init__(self) -> None:
        self._max = max_connections()
        self._open: dict[int, socket.socket] = {}
        self._idle: dict[int, None] = {}  # the one that is so for longest first

    def add(self, connection: socket.socket) -> None:
        """A new connection, on which nothing is asked yet; perhaps it ends the one that was idle for longest."""
        self._open[connection.fileno()] = connection
        self.mark_idle(connection.fileno())
        if len(self._open) > self._max:
            oldest = next(iter(self._idle))
            longest_idle = self._open[oldest]
            self.remove(oldest)
            with suppress(OSError):
                longest_idle.shutdown(socket.SHUT_RDWR)  # as if its client had ended it

    def mark_idle(self, descriptor: int) -> None:
        """From now on nothing is asked on this connection."""
        if descriptor in self._open:
            self._idle.pop(descriptor, None)
            self._idle[descriptor] = None

    def mark_busy(self, descriptor: int) -> None:
        """From now on something is."""
        self._idle.pop(descriptor, None)

    def remove(self, descriptor: int) -> None:
        """It is no more."""
        self._open.pop(descriptor, None)
        self._idle.pop(descriptor, None)


class _Accepted(socket.socket):
    """A connection that says when it is closed, whoever closes it."""

    limiter: ConnectionLimiter

    def close(self) -> None:
        self.limiter.remove(self.fileno())
        super().close()


class _Listener(socket.socket):
    """The supervisor's socket. It keeps its queue when asyncio asks for one as long as what it takes in one turn."""

    def __init__(self, descriptor: int, limiter: ConnectionLimiter) -> None:
        super().__init__(fileno=descriptor)
        self._limiter = limiter

    def listen(self, backlog: int = LISTEN_QUEUE, /) -> None:
        super().listen(LISTEN_QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection, which may cost another its own."""
        plain, address = super().accept()
        connection = _Accepted(plain.family, plain.type, plain.proto, plain.detach())
        connection.limiter = self._limiter
        self._limiter.add(connection)
        return connection, address


class ListenerConfig(Config):
    """Hypercorn's, on a socket that exists; in each turn of the loop a worker takes one connection.

    Taking as many as there are, the first of several workers to wake up would have most of a burst to itself.
    """

    def __init__(self, descriptor: int, settings: Settings) -> None:
        super().__init__()
        self.backlog = 1
        self.keep_alive_timeout = KEEP_ALIVE_SECONDS
        self.first_request_timeout = FIRST_REQUEST_SECONDS
        self.ssl_handshake_timeout = FIRST_REQUEST_SECONDS
        self.graceful_timeout = FINAL_ERROR_SECONDS
        self.h11_max_incomplete_size = 64 << 10
        self.errorlog = logging.getLogger("hypercorn.error")
        self.certfile = settings.tls_certificate or None
        self.keyfile = settings.tls_key or None
        self.limiter = ConnectionLimiter()
        self._descriptor = descriptor

    def create_sockets(self) -> Sockets:
        """The listening socket."""
        sockets: list[socket.socket] = [_Listener(self._descriptor, self.limiter)]
        return Sockets(sockets, [], []) if self.ssl_enabled else Sockets([], sockets, [])
