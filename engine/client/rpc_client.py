"""Questions to another process, and its answers: what the clients of the loader and of the adapter registry share.

Knows no messages: a question is frames with an id of its own, and whoever asks says how an answer is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from motet.core.errors import Unavailable

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 30.0
"""How long a question waits for a process that is being started (again)."""


class RpcClient(Generic[Answer]):
    """A connection to the process at `address`, called `name` in errors. `read` gives an answer's id and itself."""

    def __init__(self, address: str, name: str, read: Callable[[list[bytes]], tuple[str, Answer]]) -> None:
        self._address, self._name, self._read = address, name, read
        self._context = zmq.asyncio.Context()
        self._answers: dict[str, asyncio.Future[Answer]] = {}
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
        self._tasks = [asyncio.create_task(work()) for work in (self._receive, self._watch)]

    async def close(self) -> None:
        """Disconnect; what is still being asked fails."""
        self._fail_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    async def ask(self, id: str, question: Sequence[bytes], take_back: Sequence[bytes] = ()) -> Answer:
        """The answer to `question`; if the caller is cancelled before it comes, `take_back` is sent.

        Raises Unavailable when the process goes away, or does not come up for PATIENCE_SECONDS.
        """
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                raise Unavailable(f"the {self._name} is not running; try again shortly", param="model") from None
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[id] = answer
        try:
            await self._socket.send_multipart(question)
            return await answer
        except asyncio.CancelledError:
            if take_back:
                # Not awaited: who is being cancelled must not be held up.
                self._socket.send_multipart(take_back)
            raise
        finally:
            self._answers.pop(id, None)

    async def _watch(self) -> None:
        """A process that goes away takes its questions with it: fail them, rather than let them wait."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected.set()
            else:
                self._connected.clear()
                self._fail_all()

    def _fail_all(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"the {self._name} was restarted; try again", param="model"))

    async def _receive(self) -> None:
        while True:
            id, reply = self._read(await self._socket.recv_multipart())
            answer = self._answers.get(id)
            if answer is not None and not answer.done():
                answer.set_result(reply)
