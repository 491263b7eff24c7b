"""The API's side of the loader process: hands it directories, gets prepared adapters or refusals."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from motet.core.errors import from_info
from motet.core.messages import (
    AdapterPart,
    CheckConfig,
    ConfigAccepted,
    FromLoader,
    LoaderFailure,
    PrepareAdapter,
    PreparedAdapter,
    ToLoader,
)
from motet.engine.client.rpc_client import RpcClient

_decode = msgspec.msgpack.Decoder(FromLoader).decode


class LoaderClient:
    """One process's connection to the loader. Questions fail when the loader goes away."""

    def __init__(self, address: str) -> None:
        self._asker = RpcClient(address, "adapter loader", _read)

    async def start(self) -> None:
        """Connect; does not wait for the loader."""
        await self._asker.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._asker.close()

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """The sum of `parts` (one adapter as it is, or several merged), parsed, checked and cut for the ranks.

        Raises AdapterRefused with the config field, tensor or file at fault, Unavailable when the loader goes away.
        """
        reply = await self._ask(PrepareAdapter(uuid.uuid4().hex, tuple(parts)))
        assert isinstance(reply, PreparedAdapter), "the answer to PrepareAdapter"
        return reply

    async def check_config(self, directory: str) -> None:
        """Raise AdapterRefused if the config of the adapter in `directory` cannot be served, whatever its weights are.

        Raises Unavailable when the loader goes away.
        """
        await self._ask(CheckConfig(uuid.uuid4().hex, directory))

    async def _ask(self, question: ToLoader) -> PreparedAdapter | ConfigAccepted:
        reply = await self._asker.ask(question.id, [msgspec.msgpack.encode(question)])
        if isinstance(reply, LoaderFailure):
            raise from_info(reply.error)
        return reply


def _read(frames: list[bytes]) -> tuple[str, FromLoader]:
    reply = _decode(frames[0])
    return reply.id, reply
