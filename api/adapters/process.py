"""The registry process: `python -m motet.api.adapters.process DEPLOYMENT`. One registry for several API processes.

What it is asked and answers goes over a socket in a directory that only this user may enter: there are tokens in it.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec
import zmq
import zmq.asyncio
from loguru import logger

from motet.api.adapters.client import FAILED
from motet.api.adapters.messages import AnyQuestion, decoder, encode
from motet.api.adapters.registry import AdapterRegistry
from motet.api.adapters.wiring import own_registry
from motet.core.child_processes import follow_parent, run_child
from motet.core.deployment import Deployment
from motet.core.errors import MotetError
from motet.core.heartbeat import SERVING, Heartbeat
from motet.core.logs import configure_logging
from motet.core.plugin_registry import PluginRegistry

OK = b"ok"

_decode = decoder(AnyQuestion).decode


class RegistryServer:
    """Answers API processes' questions with one registry."""

    def __init__(self, registry: AdapterRegistry, address: str) -> None:
        """Listens at `address` from now on."""
        self._registry = registry
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(address)
        self._tasks: dict[bytes, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Answer until cancelled; a question whose id comes again, without anything, is taken back."""
        while True:
            client, id, *question = await self._socket.recv_multipart()
            if question:
                task = self._tasks[id] = asyncio.create_task(self._answer(client, id, question[0]))
                task.add_done_callback(lambda _, id=id: self._tasks.pop(id, None))  # type: ignore[misc]
            elif id in self._tasks:
                self._tasks[id].cancel()

    async def close(self) -> None:
        """Give up what is being answered."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _answer(self, client: bytes, id: bytes, question: bytes) -> None:
        status = OK
        try:
            body = encode(await self._registry.ask(_decode(question)))
        except MotetError as error:
            status, body = FAILED, _failure(error)
        except Exception as error:  # one question's trouble must not end the registry
            logger.exception("the adapter registry failed")
            status, body = FAILED, _failure(MotetError(f"the adapter registry failed: {type(error).__name__}"))
        await self._socket.send_multipart([client, id, status, body])


def _failure(error: MotetError) -> bytes:
    """`error` as a message; what a source quotes from its files may be no Unicode."""
    info = error.info()
    return encode(msgspec.structs.replace(info, message=info.message.encode(errors="replace").decode()))


async def run(deployment: Deployment, heartbeat: Heartbeat) -> None:
    """Answer until SIGTERM."""
    plugins = PluginRegistry.load()
    plugins.configure(deployment.settings)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with own_registry(deployment, plugins) as registry:
        server = RegistryServer(registry, deployment.registry_address)
        heartbeat.enter(SERVING)
        tasks = [asyncio.create_task(work()) for work in (server.run, heartbeat.keep_beating)]
        await stopped.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()


def main() -> None:
    """Run the registry of the server that argv[1] describes; exit code 2 when it cannot start."""
    deployment = msgspec.json.decode(sys.argv[1], type=Deployment)
    follow_parent()
    configure_logging(process="registry")
    run_child("adapter registry", lambda heartbeat: asyncio.run(run(deployment, heartbeat)))


if __name__ == "__main__":
    main()
