"""Measures the cost of the HTTP layer: one API process with an engine that returns tokens immediately.

`python -m tests.benchmarks.http_layer` prints tokens per second over many streams, and the time to the first token of
a single client. The client runs on the same cores, but only counts events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from motet.core.deployment import Deployment
from motet.core.paths import cache_directory
from motet.core.settings import Settings
from motet.engine.models.convert_gguf import converted_directory
from motet.plugins.sources.smollm2 import NAME as SMOLLM2
from motet.plugins.sources.smollm2 import Smollm2
from tests.benchmarks.served import served

EVENT = b'"finish_reason":'
END = b"data: [DONE]"


@contextmanager
def api_process() -> Iterator[tuple[int, psutil.Process]]:
    """(port, process) of an API worker whose engine is `instant_engine`."""
    directory = converted_directory(Smollm2().locate(SMOLLM2).path, cache_directory())
    with tempfile.TemporaryDirectory(prefix="motet-bench-") as run, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        deployment = Deployment(
            settings=Settings(data_dir=f"{run}/data"),
            model_directory=str(directory),
            model_name="instant",
            engine_address=f"ipc://{run}/engine",
            loader_address=f"ipc://{run}/loader",
            state_address=f"ipc://{run}/state",
            socket=listener.fileno(),
            address=f"http://127.0.0.1:{port}",
        )
        engine = [sys.executable, "-m", "tests.benchmarks.instant_engine", run, str(directory)]
        worker = [sys.executable, "-m", "motet.api.worker", msgspec.json.encode(deployment).decode()]
        started = [
            subprocess.Popen(engine),
            subprocess.Popen(worker, stdin=subprocess.PIPE, pass_fds=(listener.fileno(),), stdout=subprocess.DEVNULL),
        ]
        try:
            asyncio.run(_wait(port))
            yield port, psutil.Process(started[1].pid)
        finally:
            for process in started:
                process.kill()
                process.wait()


async def _wait(port: int) -> None:
    while True:
        try:
            await stream(port, 1)
        except (OSError, AssertionError):
            await asyncio.sleep(0.1)
        else:
            return


async def stream(port: int, tokens: int) -> tuple[int, float]:
    """One streamed chat answer: (events with a token, seconds to the first of them)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    message = {"role": "user", "content": "Tell me of the sea."}
    body = json.dumps({"model": "", "messages": [message], "max_tokens": tokens, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    head += "content-type: application/json\r\nconnection: close\r\n"
    started = time.perf_counter()
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    count, first, tail = 0, 0.0, b""
    status = await reader.readline()
    assert status.startswith(b"HTTP/1.1 200"), status
    while data := await reader.read(1 << 16):
        if not first and b'"content":"' in data:
            first = time.perf_counter() - started
        text = tail + data
        count += text.count(EVENT) - tail.count(EVENT)
        tail = text[-len(EVENT) :]
    writer.close()
    return count - 2, first  # neither the event with the role nor the last one has a token


async def many(port: int, streams: int, tokens: int) -> tuple[int, float]:
    """(tokens, seconds) of many concurrent streams."""
    started = time.perf_counter()
    counts = await asyncio.gather(*(stream(port, tokens) for _ in range(streams)))
    return sum(count for count, _ in counts), time.perf_counter() - started


def real_share(streams: int, tokens: int) -> None:
    """Print the share of a core that the API process uses with the real engine."""
    place = Path(tempfile.mkdtemp(prefix="motet-bench-"))
    with served(place, place / "log") as server:
        port = int(server.url.rpartition(":")[2])
        asyncio.run(many(port, streams, 4))
        before = server.seconds("api.worker")
        made, seconds = asyncio.run(many(port, streams, tokens))
        share = (server.seconds("api.worker") - before) / seconds
    shutil.rmtree(place)
    print(f"real engine, {streams} streams: {made / seconds:.0f} tokens/s; the API process took {share:.1%} of a core")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=100)
    options = parser.parse_args()
    with api_process() as (port, process):
        for _ in range(options.rounds):
            before = process.cpu_times()
            tokens, seconds = asyncio.run(many(port, options.streams, options.tokens))
            after = process.cpu_times()
            busy = after.user + after.system - before.user - before.system
            print(
                f"{options.streams} streams: {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s; "
                f"the API process used {busy:.2f} s ({1e6 * busy / tokens:.0f} us a token)",
                flush=True,
            )

        async def singles() -> list[float]:
            return [(await stream(port, 8))[1] for _ in range(options.singles)]

        firsts = sorted(asyncio.run(singles()))
        p95 = firsts[int(0.95 * len(firsts))]
        print(f"first token, one client: p50 {1e3 * statistics.median(firsts):.2f} ms, p95 {1e3 * p95:.2f} ms")
    real_share(32, 64)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
