"""Hypercorn's configuration: it listens on the supervisor's socket and limits the open connections."""

from __future__ import annotations

import logging
import resource
import socket
from contextlib import suppress
from typing import Any

from hypercorn.config import Config, Sockets

from motet.core.settings import Settings

FINAL_ERROR_SECONDS = 0.5
"""Time that requests have after the drain to send their error."""

KEEP_ALIVE_SECONDS = 75
FIRST_REQUEST_SECONDS = 15
"""How long a new connection may take to send its first request."""

LISTEN_QUEUE = 1024
"""Connections that the kernel queues until a worker accepts them."""

MAX_CONNECTIONS = 8192
SPARE_FILES = 0.25
"""The share of a process's open files that is reserved for everything but connections."""


def max_connections() -> int:
    """How many connections a process may have open, derived from its limit of open files."""
    return min(MAX_CONNECTIONS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * (1 - SPARE_FILES)))


class ConnectionLimiter:
    """The open connections of one process, by file descriptor; closes the longest idle one when there are too many."""

    def __init__(self) -> None:
        self._max = max_connections()
        self._open: dict[int, socket.socket] = {}
        self._idle: dict[int, None] = {}  # ordered by idle time, the longest first

    def add(self, connection: socket.socket) -> None:
        """Add a new connection, which is idle; if there are too many, close the one idle for longest."""
        self._open[connection.fileno()] = connection
        self.mark_idle(connection.fileno())
        if len(self._open) > self._max:
            oldest = next(iter(self._idle))
            longest_idle = self._open[oldest]
            self.remove(oldest)
            with suppress(OSError):
                longest_idle.shutdown(socket.SHUT_RDWR)  # looks as if the client had closed it

    def mark_idle(self, descriptor: int) -> None:
        """The connection has no request in progress."""
        if descriptor in self._open:
            self._idle.pop(descriptor, None)
            self._idle[descriptor] = None

    def mark_busy(self, descriptor: int) -> None:
        """The connection has a request in progress."""
        self._idle.pop(descriptor, None)

    def remove(self, descriptor: int) -> None:
        """The connection is closed."""
        self._open.pop(descriptor, None)
        self._idle.pop(descriptor, None)


class _Accepted(socket.socket):
    """An accepted connection, which leaves the limiter when it is closed."""

    limiter: ConnectionLimiter

    def close(self) -> None:
        self.limiter.remove(self.fileno())
        super().close()


class _Listener(socket.socket):
    """The supervisor's socket. asyncio's `backlog` limits only the accepts per turn here, not the queue."""

    def __init__(self, descriptor: int, limiter: ConnectionLimiter) -> None:
        super().__init__(fileno=descriptor)
        self._limiter = limiter

    def listen(self, backlog: int = LISTEN_QUEUE, /) -> None:
        super().listen(LISTEN_QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the limiter may close another one for it."""
        plain, address = super().accept()
        connection = _Accepted(plain.family, plain.type, plain.proto, plain.detach())
        connection.limiter = self._limiter
        self._limiter.add(connection)
        return connection, address


class ListenerConfig(Config):
    """Hypercorn's configuration for an existing socket; a worker accepts one connection per turn of its event loop.

    If it accepted all, the first of several workers to wake up would get most of a burst.
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
