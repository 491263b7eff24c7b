"""The loader process: `python -m motet.engine.adapters.loader SPEC`. Prepares adapters off everybody's loop.

A process of its own, since parsing foreign files must neither share the step's interpreter nor be able to take a
rank down.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio
from loguru import logger

from motet.core.errors import MotetError
from motet.core.heartbeat import SERVING, Heartbeat
from motet.core.lifeline import follow_parent, run_child
from motet.core.logs import configure_logging
from motet.core.messages import FromLoader, LoaderFailure, PrepareAdapter
from motet.engine.spec import EngineSpec

PARALLEL = 2
"""Adapters prepared at once."""

MAX_MESSAGE = 1000
"""Characters of an error message; some quote what an adapter's files say."""


class LoaderSpec(msgspec.Struct, frozen=True):
    """What the loader prepares for, and the address it answers at."""

    engine: EngineSpec
    shards: int
    address: str
    cache: str


async def serve(spec: LoaderSpec, heartbeat: Heartbeat) -> None:
    """Answer questions until SIGTERM."""
    heartbeat.enter("importing PyTorch")
    from motet.engine.adapters.prepare import Target, prepare_adapter
    from motet.engine.adapters.tokens import BaseTokens
    from motet.engine.models.config import read_config
    from motet.engine.runner import resolve_device, resolve_dtype

    directory = Path(spec.engine.directory)
    model = read_config(directory)
    target = Target(
        model=model,
        base_fingerprint=hashlib.sha256((directory / "config.json").read_bytes()).hexdigest(),
        shards=spec.shards,
        dtype=resolve_dtype(spec.engine, model, resolve_device(spec.engine, 0)),
        max_rank=spec.engine.max_adapter_rank,
        cache=Path(spec.cache),
        tokens=BaseTokens(directory),
    )
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    socket.bind(spec.address)
    gate = asyncio.Semaphore(PARALLEL)

    async def answer(client: bytes, question: PrepareAdapter) -> None:
        async with gate:
            reply: FromLoader
            try:
                prepared = await asyncio.to_thread(prepare_adapter, question.parts, target)
                reply = msgspec.structs.replace(prepared, id=question.id)
            except MotetError as error:
                info = error.info()
                reply = LoaderFailure(
                    question.id, msgspec.structs.replace(info, message=_plain(info.message), param=_plain(info.param))
                )
            except Exception as error:  # one adapter's trouble must not end the loader
                logger.exception("preparing an adapter failed")
                failure = MotetError(f"preparing the adapter failed: {type(error).__name__}")
                reply = LoaderFailure(question.id, failure.info())
        await socket.send_multipart([client, msgspec.msgpack.encode(reply)])

    heartbeat.enter(SERVING)
    tasks: set[asyncio.Task[None]] = {asyncio.create_task(heartbeat.keep_beating())}
    while True:
        client, body = await socket.recv_multipart()
        task = asyncio.create_task(answer(client, msgspec.msgpack.decode(body, type=PrepareAdapter)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _plain(text: str | None) -> str | None:
    """Text from a foreign file as a message can carry it: no lone surrogates, no megabytes."""
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
