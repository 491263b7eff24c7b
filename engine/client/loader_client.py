"""The API's side of the loader process: hands it directories, gets prepared adapters or refusals."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from motet.core.errors import from_info
from motet.core.messages import FromLoader, LoaderFailure, PrepareAdapter, PreparedAdapter

_decode = msgspec.msgpack.Decoder(FromLoader).decode


class LoaderClient:
    """One API process's connection to the loader. A loader that restarts forgets questions; callers time out."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.asyncio.Context()
        self._answers: dict[str, asyncio.Future[FromLoader]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect; does not wait for the loader."""
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(self._address)
        self._task = asyncio.create_task(self._receive())

    async def close(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
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

    async def _receive(self) -> None:
        while True:
            reply = _decode(await self._socket.recv())
            answer = self._answers.get(reply.id)
            if answer is not None and not answer.done():
                answer.set_result(reply)
