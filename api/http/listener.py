"""Hypercorn as the API's processes use it: on the supervisor's socket, with limits, and without idle leftovers."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import struct
from contextlib import suppress
from typing import Any

from hypercorn.asyncio import run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData, Updated

from motet.api.http import http1, http2, slow_readers, websockets
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

http1.install()
http2.install()
websockets.install()


def most_connections() -> int:
    """How many connections a process may hold at once: fewer than it may open files."""
    return min(MAX_CONNECTIONS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * (1 - SPARE_FILES)))


class ConnectionLimiter:
    """The open connections of one process, by file descriptor. Where there are too many, an idle one has to go."""

    def __init__(self) -> None:
        self._most = most_connections()
        self._open: dict[int, socket.socket] = {}
        self._idle: dict[int, None] = {}  # the one that is so for longest first

    def add(self, connection: socket.socket) -> None:
        """A new connection, on which nothing is asked yet; perhaps it ends the one that was idle for longest."""
        self._open[connection.fileno()] = connection
        self.rest(connection.fileno())
        if len(self._open) > self._most:
            oldest = next(iter(self._idle))
            leaving = self._open[oldest]
            self.remove(oldest)
            with suppress(OSError):
                leaving.shutdown(socket.SHUT_RDWR)  # as if its client had ended it

    def rest(self, descriptor: int) -> None:
        """From now on nothing is asked on this connection."""
        if descriptor in self._open:
            self._idle.pop(descriptor, None)
            self._idle[descriptor] = None

    def work(self, descriptor: int) -> None:
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
        self.ssl_handshake_timeout = FIRST_HEAD_SECONDS
        self.graceful_timeout = LAST_WORDS_SECONDS
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


class Connection(TCPServer):
    """Hypercorn's, but gone when its client is, and soon where none says what it wants or reads what it gets.

    Hypercorn's own keeps the socket of a client that left until the idle time is over, and waits without end for one
    that does not read.
    """

    config: ListenerConfig
    _left = False
    _asked = False

    async def protocol_send(self, event: Event) -> None:
        """Send, or take note; nobody waits for the next request of a client that left."""
        if isinstance(event, RawData):
            await self._send(event.data)
            return
        if isinstance(event, Updated):
            if self._left:
                return
            self._note(event.idle)
        await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Send; the connection ends if the client does not take it, which ends its requests."""
        async with self.send_lock:
            try:
                self.writer.write(data)
                if self._unsent():
                    async with slow_readers.taking(self._unsent):
                        await self.writer.drain()
                else:
                    await self.writer.drain()  # only raises
            except TimeoutError:
                self._abort()
                await self.protocol.handle(Closed())
            except (ConnectionError, RuntimeError):
                await self.protocol.handle(Closed())

    def _unsent(self) -> int:
        """Bytes that wait to be sent; 0 on a connection that is being closed."""
        return 0 if self.writer.is_closing() else self.writer.transport.get_write_buffer_size()

    def _abort_later(self) -> None:
        """End a connection that is about to be closed, if its client does not take what waits for it."""
        if self._unsent():
            self.loop.call_later(slow_readers.SEND_SECONDS, self._abort)

    def _abort(self) -> None:
        """End the connection at once; with this option the kernel drops its part of what was not sent, too."""
        with suppress(OSError):  # it is closed already
            option = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        self.writer.transport.abort()

    async def _close(self) -> None:
        self._abort_later()
        await super()._close()

    async def _initiate_server_close(self) -> None:
        self._abort_later()
        await super()._initiate_server_close()

    def _note(self, idle: bool) -> None:
        descriptor = self.writer.get_extra_info("socket").fileno()
        self._asked = self._asked or not idle
        (self.config.limiter.rest if idle else self.config.limiter.work)(descriptor)

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
