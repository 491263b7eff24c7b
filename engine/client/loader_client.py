"""The API's side of the loader process: hands it directories, gets prepared adapters or refusals."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from motet.core.errors import Unavailable, from_info
from motet.core.messages import FromLoader, LoaderFailure, PrepareAdapter, PreparedAdapter

_decode = msgspec.msgpack.Decoder(FromLoader).decode


class LoaderClient:
    """One API process's connection to the loader. Questions fail when the loader goes away."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.asyncio.Context()
        self._answers: dict[str, asyncio.Future[FromLoader]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect; does not wait for the loader."""
        self._socket = self._context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(self._address)
        self._tasks = [asyncio.create_task(work()) for work in (self._receive, self._watch)]

    async def close(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    async def prepare(self, directory: Path) -> PreparedAdapter:
        """The adapter in `directory`, parsed, checked and cut for the ranks.

        Raises AdapterRefused with the config field, tensor or file at fault.
        """
        id = uuid.uuid4().hex
        answer: asyncio.Future[FromLoader] = asyncio.get_running_loop().create_future()
        self._answers[id] = answer
        try:
            await self._socket.send(msgspec.msgpack.encode(PrepareAdapter(id, str(directory))))
            reply = await answer
        finally:
            self._answers.pop(id, None)
        if isinstance(reply, LoaderFailure):
            raise from_info(reply.error)
        return reply

    async def _watch(self) -> None:
        """A loader that goes away takes its questions with it: fail them, rather than let them wait."""
        while True:
            await self._monitor.recv_multipart()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(Unavailable("the adapter loader was restarted; try again", param="model"))

    async def _receive(self) -> None:
        while True:
            reply = _decode(await self._socket.recv())
            answer = self._answers.get(reply.id)
            if answer is not None and not answer.done():
                answer.set_result(reply)
