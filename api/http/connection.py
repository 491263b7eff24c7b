"""One TCP connection: closed when its client leaves, stays idle too long, or does not read what is sent to it."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, RawData, Updated

from motet.api.http import slow_readers
from motet.api.http.listener import ListenerConfig


class Connection(TCPServer):
    """Hypercorn's TCP connection, closed when its client leaves, sends no first request or does not read.

    Hypercorn keeps the socket of a client that left until the idle timeout, and waits forever for a client that does
    not read.
    """

    config: ListenerConfig
    _client_left = False
    _had_request = False

    async def protocol_send(self, event: Event) -> None:
        """Send data or note an idle connection; a client that left will send no further request."""
        if isinstance(event, RawData):
            await self._send(event.data)
            return
        if isinstance(event, Updated):
            if self._client_left:
                return
            self._note_idle(event.idle)
        await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Send; if the client does not read in time, abort the connection, which ends its requests."""
        async with self.send_lock:
            try:
                self.writer.write(data)
                if self._unsent():
                    async with slow_readers.send_timeout(self._unsent):
                        await self.writer.drain()
                else:
                    await self.writer.drain()  # only raises
            except TimeoutError:
                self._abort()
                await self.protocol.handle(Closed())
            except (ConnectionError, RuntimeError):
                await self.protocol.handle(Closed())

    def _unsent(self) -> int:
        """Bytes not sent yet; 0 while the connection is closing."""
        return 0 if self.writer.is_closing() else self.writer.transport.get_write_buffer_size()

    def _abort_later(self) -> None:
        """Abort a closing connection later, in case its client does not read the rest."""
        if self._unsent():
            self.loop.call_later(slow_readers.SEND_SECONDS, self._abort)

    def _abort(self) -> None:
        """Close the connection at once; with SO_LINGER 0 the kernel drops its unsent data, too."""
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

    def _note_idle(self, idle: bool) -> None:
        descriptor = self.writer.get_extra_info("socket").fileno()
        self._had_request = self._had_request or not idle
        (self.config.limiter.mark_idle if idle else self.config.limiter.mark_busy)(descriptor)

    async def _idle_timeout(self) -> None:
        seconds = self.config.keep_alive_timeout if self._had_request else self.config.first_request_timeout
        with suppress(TimeoutError):
            await asyncio.wait_for(self.context.terminated.wait(), seconds)
        await asyncio.shield(self._initiate_server_close())

    async def _read_data(self) -> None:
        await super()._read_data()
        self._client_left = True
        await self.idle_task.stop()
