"""Clients that disconnect at any point leave no sequences, tasks or file descriptors behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

import httpx2
from support.api_caller import CHAT, COMPLETIONS, MESSAGES
from support.scripted_server import Running, scripted_server

REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": MESSAGES, "n": 2}),
    (CHAT, {"messages": MESSAGES, "stream": True, "n": 3}),
    (CHAT, {"messages": MESSAGES, "stream": True, "model": "shelf:one"}),
    (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 90, "stream": True}),
    (COMPLETIONS, {"prompt": "a", "best_of": 4, "max_tokens": 90}),
    ("/v1/responses", {"input": "hi", "stream": True}),
    ("/v1/responses", {"input": "hi", "store": False}),
    ("/v1/embeddings", {"input": ["a"] * 20}),
    ("/generate", {"inputs": "hi", "parameters": {"best_of": 2, "do_sample": True}}),
    ("/generate_stream", {"inputs": "hi"}),
)
ROUNDS = 60


async def leave(server: Running, chance: random.Random) -> None:
    """Send a request, or a part of it; read some of the answer, or nothing; go, politely or not."""
    path, fields = chance.choice(REQUESTS)
    body = json.dumps({"model": "", **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent if chance.random() < 0.8 else sent[: chance.randrange(len(sent))])
    if chance.random() < 0.7:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(chance.choice((1, 200, 2000))), chance.random() * 0.2)
    if chance.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


def held() -> tuple[int, int]:
    """How many tasks and file descriptors there are."""
    return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))


async def settle(server: Running, base: tuple[int, int]) -> tuple[int, int]:
    """What is held, once it is no more than `base`, or after some seconds."""
    for _ in range(300):
        now = held()
        if not server.api.engine.running and now[0] <= base[0] and now[1] <= base[1]:
            break
        await asyncio.sleep(0.02)
    return now


def test_clients_that_leave_at_any_point_leave_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        chance = random.Random(7)
        async with scripted_server(tmp_path) as server:
            server.api.engine.script = lambda request: "x" * 60
            server.api.engine.step_seconds = 0.005
            async with httpx2.AsyncClient() as client:
                for path, fields in REQUESTS:
                    assert (await client.post(server.url + path, json={"model": "", **fields})).status_code == 200
            for measured in (False, True):  # the first time, for what is made once
                await asyncio.sleep(1.0)
                base, before = held(), len(server.api.engine.submits)
                for _ in range(ROUNDS // 6):
                    await asyncio.gather(*(leave(server, chance) for _ in range(6)))
                now = await settle(server, base) if measured else base
            assert not server.api.engine.running
            assert server.api.services.drain.running == 0
            assert now[0] <= base[0], "a task was left behind"
            assert now[1] <= base[1], "a file descriptor was left behind"
            assert len(server.api.engine.submits) > before + ROUNDS // 4

    asyncio.run(main())
