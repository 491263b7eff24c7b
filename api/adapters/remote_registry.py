"""Calls the adapter registry in another process: every method of `AdapterRegistry`, over ZeroMQ.

    RemoteRegistry ──[call id, method, arguments]──> RegistryServer ──> LocalRegistry
                   <──[call id, ok | failed, result | ErrorInfo]──

Arguments and results are msgpack; their types come from the methods' annotations. A call id without a method cancels
that call. The socket's directory must be private to this user: arguments contain tokens.
"""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import msgspec
import zmq
import zmq.asyncio
from loguru import logger

from motet.api.adapters.local_registry import open_local_registry
from motet.api.adapters.names import NameRules, name_rules
from motet.api.adapters.registry import AdapterRegistry
from motet.core.adapter_source import AdapterRef
from motet.core.deployment import Deployment
from motet.core.errors import ErrorInfo, InvalidRequest, MotetError, from_info
from motet.core.plugin_registry import PluginRegistry
from motet.engine.client.rpc_client import RpcClient

P = ParamSpec("P")
R = TypeVar("R")

OK, FAILED = b"ok", b"failed"

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode  # a Path becomes a string
_decode_error = msgspec.msgpack.Decoder(ErrorInfo).decode


class Method:
    """Encodes and decodes the calls of one method, based on its annotations."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._signature = inspect.signature(function)
        types = get_type_hints(function)
        self.decode_result = _decoder(types.pop("return"))
        self.decode_arguments = _decoder(tuple.__class_getitem__(tuple(types.values())))

    def encode_arguments(self, *args: Any, **kwargs: Any) -> bytes:
        """Encode the arguments of one call without the first, `self`. Raises InvalidRequest."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            return _encode(tuple(bound.arguments.values())[1:])
        except UnicodeEncodeError as error:
            raise InvalidRequest("the adapter's name is not valid Unicode", param="model") from error


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=lambda expected, value: expected(value)).decode


METHODS = {name: Method(getattr(AdapterRegistry, name)) for name in AdapterRegistry.__abstractmethods__}


def _remote(
    function: Callable[Concatenate[AdapterRegistry, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[RemoteRegistry, P], Coroutine[Any, Any, R]]:
    """Make a method that calls `function` in the registry's process."""
    method = METHODS[function.__name__]

    async def call(self: RemoteRegistry, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = method.decode_result(await self.call(method.name, method.encode_arguments(self, *args, **kwargs)))
        return result

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


class RemoteRegistry(AdapterRegistry):
    """The adapter registry in another process. Methods raise the MotetError that was raised there."""

    def __init__(self, address: str, names: NameRules) -> None:
        self._names = names
        self._client: RpcClient[list[bytes]] = RpcClient(
            address, "adapter registry", lambda frames: (frames[0].decode(), frames)
        )

    async def start(self) -> None:
        """Connect; does not wait for the registry's process."""
        await self._client.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()

    async def find(self, model: str, source: str | None) -> AdapterRef | None:
        """As `AdapterRegistry.find`; finds the base model also while the registry's process is down."""
        return None if self._names.is_base(model, source) else await self._find(model, source)

    _find = _remote(AdapterRegistry.find)
    resolve = _remote(AdapterRegistry.resolve)
    serve = _remote(AdapterRegistry.serve)
    serve_merged = _remote(AdapterRegistry.serve_merged)
    listing = _remote(AdapterRegistry.listing)

    async def call(self, method: str, arguments: bytes) -> bytes:
        """Return the encoded result of one call. If this call is cancelled, also cancels the remote one."""
        id = uuid.uuid4().hex.encode()
        _, status, result = await self._client.call(id.decode(), [id, method.encode(), arguments], cancel_message=[id])
        if status == FAILED:
            raise from_info(_decode_error(result))
        return result


class RegistryServer:
    """Executes the calls of RemoteRegistry objects on one registry."""

    def __init__(self, registry: AdapterRegistry, address: str) -> None:
        """Bind to `address`."""
        self._registry = registry
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(address)
        self._tasks: dict[bytes, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Execute calls until cancelled."""
        while True:
            client, id, *call = await self._socket.recv_multipart()
            if call:
                task = self._tasks[id] = asyncio.create_task(self._execute(client, id, call))
                task.add_done_callback(lambda _, id=id: self._tasks.pop(id, None))  # type: ignore[misc]
            elif id in self._tasks:
                self._tasks[id].cancel()

    async def close(self) -> None:
        """Cancel all calls and close the socket."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _execute(self, client: bytes, id: bytes, call: Sequence[bytes]) -> None:
        status = OK
        try:
            name, arguments = call
            method = METHODS[name.decode()]
            body = _encode(await getattr(self._registry, method.name)(*method.decode_arguments(arguments)))
        except MotetError as error:
            status, body = FAILED, _failure(error)
        except Exception as error:  # a failed call must not end the registry
            logger.exception("the adapter registry failed")
            status, body = FAILED, _failure(MotetError(f"the adapter registry failed: {type(error).__name__}"))
        await self._socket.send_multipart([client, id, status, body])


def _failure(error: MotetError) -> bytes:
    """Encode `error`. Its message may contain invalid Unicode from files of a source."""
    info = error.info()
    return _encode(msgspec.structs.replace(info, message=info.message.encode(errors="replace").decode()))


@asynccontextmanager
async def open_registry(deployment: Deployment, plugins: PluginRegistry) -> AsyncIterator[AdapterRegistry]:
    """Open the registry for an API process: in this process, or shared if there are several API processes.

    Raises StartupError for an invalid setting.
    """
    if deployment.workers == 1:
        async with open_local_registry(deployment, plugins) as registry:
            yield registry
        return
    remote = RemoteRegistry(deployment.registry_address, name_rules(deployment))
    await remote.start()
    try:
        yield remote
    finally:
        await remote.close()
