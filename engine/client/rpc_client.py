"""Sends requests to another process and matches its replies by id; for the loader and the adapter registry.

Independent of the messages: a request is a list of frames with an id, and the caller passes the function that reads a
reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from motet.core.errors import Unavailable

Reply = TypeVar("Reply")

CONNECT_SECONDS = 30.0
"""How long a request waits for a process that is starting or restarting."""


class RpcClient(Generic[Reply]):
    """A connection to the process at `address`; errors call it `name`. `read` decodes a reply into its id and value."""

    def __init__(self, address: str, name: str, read: Callable[[list[bytes]], tuple[str, Reply]]) -> None:
        self._address, self._name, self._read = address, name, read
        self._context = zmq.asyncio.Context()
        self._replies: dict[str, asyncio.Future[Reply]] = {}
        self._connected = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect; does not wait for the process."""
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._socket.connect(self._address)
        self._tasks = [asyncio.create_task(loop()) for loop in (self._receive, self._watch_connection)]

    async def close(self) -> None:
        """Disconnect; requests without a reply fail."""
        self._fail_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    async def call(self, id: str, request: Sequence[bytes], cancel_message: Sequence[bytes] = ()) -> Reply:
        """Send `request` and return its reply. If the caller is cancelled first, send `cancel_message`.

        Raises Unavailable if the process ends, or is not up within CONNECT_SECONDS.
        """
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                raise Unavailable(f"the {self._name} is not running; try again shortly", param="model") from None
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[id] = reply
        try:
            await self._socket.send_multipart(request)
            return await reply
        except asyncio.CancelledError:
            if cancel_message:
                # Not awaited: a cancelled task must not be delayed.
                self._socket.send_multipart(cancel_message)
            raise
        finally:
            self._replies.pop(id, None)

    async def _watch_connection(self) -> None:
        """Fail the open requests as soon as the process is gone."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected.set()
            else:
                self._connected.clear()
                self._fail_all()

    def _fail_all(self) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(Unavailable(f"the {self._name} was restarted; try again", param="model"))

    async def _receive(self) -> None:
        while True:
            id, value = self._read(await self._socket.recv_multipart())
            reply = self._replies.get(id)
            if reply is not None and not reply.done():
                reply.set_result(value)
