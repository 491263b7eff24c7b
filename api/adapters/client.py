"""An API process's side of the registry process."""

from __future__ import annotations

import uuid
from functools import cache
from typing import TypeVar

import msgspec

from motet.api.adapters.messages import Question, answer_type, decoder, encode
from motet.core.errors import ErrorInfo, InvalidRequest, from_info
from motet.engine.client.rpc_client import RpcClient

T = TypeVar("T")

FAILED = b"failed"

_decoder = cache(decoder)
_decode_error = msgspec.msgpack.Decoder(ErrorInfo).decode


class RegistryClient:
    """One API process's connection to the registry process; a registry like that in the same process."""

    def __init__(self, address: str) -> None:
        self._rpc: RpcClient[list[bytes]] = RpcClient(
            address, "adapter registry", lambda frames: (frames[0].decode(), frames)
        )

    async def start(self) -> None:
        """Connect; does not wait for the registry."""
        await self._rpc.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._rpc.close()

    async def ask(self, question: Question[T]) -> T:
        """The answer to `question`; being cancelled, the registry is told so.

        Raises MotetError as it was raised there, Unavailable when the registry process goes away.
        """
        try:
            body = encode(question)
        except UnicodeEncodeError as error:
            raise InvalidRequest("the name of an adapter is no Unicode text", param="model") from error
        id = uuid.uuid4().hex
        _, status, answer = await self._rpc.call(id, [id.encode(), body], cancel_message=[id.encode()])
        if status == FAILED:
            raise from_info(_decode_error(answer))
        result: T = _decoder(answer_type(type(question))).decode(answer)
        return result
