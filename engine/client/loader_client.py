"""The API's client of the adapter loader: sends it adapter directories and returns prepared adapters."""

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
    """One process's connection to the loader. Requests fail if the loader ends."""

    def __init__(self, address: str) -> None:
        self._rpc = RpcClient(address, "adapter loader", _read)

    async def start(self) -> None:
        """Connect; does not wait for the loader."""
        await self._rpc.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._rpc.close()

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """Parse, check and shard the sum of `parts`: one adapter unchanged, or several merged.

        Raises AdapterRefused with the config field, tensor or file at fault, Unavailable if the loader ends.
        """
        reply = await self._call(PrepareAdapter(uuid.uuid4().hex, tuple(parts)))
        assert isinstance(reply, PreparedAdapter), "the reply to PrepareAdapter"
        return reply

    async def check_config(self, directory: str) -> None:
        """Raise AdapterRefused if the adapter_config.json in `directory` cannot be served; does not read the weights.

        Raises Unavailable if the loader ends.
        """
        await self._call(CheckConfig(uuid.uuid4().hex, directory))

    async def _call(self, request: ToLoader) -> PreparedAdapter | ConfigAccepted:
        reply = await self._rpc.call(request.id, [msgspec.msgpack.encode(request)])
        if isinstance(reply, LoaderFailure):
            raise from_info(reply.error)
        return reply


def _read(frames: list[bytes]) -> tuple[str, FromLoader]:
    reply = _decode(frames[0])
    return reply.id, reply
