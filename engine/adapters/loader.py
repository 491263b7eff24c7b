"""The loader process: `python -m motet.engine.adapters.loader SPEC`. Prepares adapters.

A separate process, since parsing files of other people must not slow down or crash a rank.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq
import zmq.asyncio
from loguru import logger

from motet.core.child_processes import follow_parent, run_child
from motet.core.errors import ErrorInfo, MotetError, Unavailable
from motet.core.heartbeat import SERVING, Heartbeat
from motet.core.logs import configure_logging
from motet.core.messages import CheckConfig, ConfigAccepted, FromLoader, LoaderFailure, ToLoader
from motet.engine.engine_config import EngineConfig

if TYPE_CHECKING:
    from motet.engine.adapters.prepare import Target

PARALLEL = 2
"""Adapters prepared at once."""

COPIES = 8
"""Copies of the largest adapter in memory per preparation: its file, a merge of twice its size in fp32, shards."""

SPARE_BYTES = 2 << 30
"""Memory for everything else: tokenizers, blocks of the base's tensors, intermediate results."""

MAX_MESSAGE = 1000
"""Maximum characters of an error message; some quote an adapter's files."""


class LoaderSpec(msgspec.Struct, frozen=True):
    """The base model and settings to prepare adapters for, and the loader's address."""

    engine: EngineConfig
    address: str
    cache: str
    names: tuple[str, ...] = ()
    """The base model's names, to compare with the base model in adapters' configs."""


def make_target(spec: LoaderSpec) -> Target:
    """Read the base model's facts for preparing adapters. Raises StartupError."""
    from motet.engine.adapters.added_tokens import BaseTokens
    from motet.engine.adapters.prepare import Target
    from motet.engine.device import resolve_device, resolve_dtype
    from motet.engine.models.architectures import read_config

    directory = Path(spec.engine.directory)
    model = read_config(directory)
    return Target(
        model=model,
        base_fingerprint=hashlib.sha256((directory / "config.json").read_bytes()).hexdigest(),
        shards=spec.engine.shards,
        dtype=resolve_dtype(spec.engine, model, resolve_device(spec.engine, 0)),
        max_rank=spec.engine.max_adapter_rank,
        cache=Path(spec.cache),
        directory=directory,
        names=(*spec.names, str(directory)),
        tokens=BaseTokens(directory),
    )


def limit_memory(target: Target) -> None:
    """Limit this process's memory to the needs of the largest adapters, so that no file uses up the machine's."""
    from motet.engine.adapters.lora_tensors import largest_adapter

    status = Path("/proc/self/status").read_text()
    now = int(status.partition("VmData:")[2].split()[0]) << 10
    limit = now + PARALLEL * COPIES * largest_adapter(target.model, target.max_rank) + SPARE_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def respond(request: ToLoader, target: Target) -> FromLoader:
    """Answer one request; an error in an adapter becomes a LoaderFailure."""
    from motet.engine.adapters.peft_config import read_config
    from motet.engine.adapters.prepare import prepare_adapter

    try:
        if isinstance(request, CheckConfig):
            read_config(Path(request.directory))
            return ConfigAccepted(request.id)
        return msgspec.structs.replace(prepare_adapter(request.parts, target), id=request.id)
    except Exception as error:  # one adapter's failure must not end the loader
        return LoaderFailure(request.id, error_info(error))


def error_info(error: Exception) -> ErrorInfo:
    """A failure to prepare an adapter as data; an unexpected one is logged."""
    if isinstance(error, MotetError):
        info = error.info()
        return msgspec.structs.replace(info, message=_plain(info.message), param=_plain(info.param))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # Python's, or torch's
        return Unavailable("preparing the adapter needs more memory than the adapter loader may use; try again").info()
    logger.opt(exception=error).error("preparing an adapter failed")
    return MotetError(f"preparing the adapter failed: {type(error).__name__}").info()


async def serve(spec: LoaderSpec, heartbeat: Heartbeat) -> None:
    """Answer requests until SIGTERM."""
    heartbeat.enter("importing PyTorch")
    target = make_target(spec)
    limit_memory(target)
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    socket.bind(spec.address)
    gate = asyncio.Semaphore(PARALLEL)

    async def answer(client: bytes, request: ToLoader) -> None:
        async with gate:
            reply = await asyncio.to_thread(respond, request, target)
        await socket.send_multipart([client, msgspec.msgpack.encode(reply)])

    heartbeat.enter(SERVING)
    tasks: set[asyncio.Task[None]] = {asyncio.create_task(heartbeat.keep_beating())}
    while True:
        client, body = await socket.recv_multipart()
        task = asyncio.create_task(answer(client, msgspec.msgpack.decode(body, type=ToLoader)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _plain(text: str | None) -> str | None:
    """Text from an adapter file that fits into a message: shortened, and without lone surrogates."""
    return None if text is None else text[:MAX_MESSAGE].encode(errors="replace").decode()


def main() -> None:
    """Run the loader that argv[1] describes."""
    spec = msgspec.json.decode(sys.argv[1], type=LoaderSpec)
    follow_parent()
    configure_logging(process="loader")
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    run_child("adapter loader", lambda heartbeat: asyncio.run(serve(spec, heartbeat)))


if __name__ == "__main__":
    main()
