"""Clients of Anthropic's and Ollama's APIs that disconnect: their sequences are aborted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.api_caller import MESSAGES
from support.scripted_server import scripted_server

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {"max_tokens": 2000, "messages": MESSAGES}),
    ("/api/chat", {"messages": MESSAGES}),
    ("/api/generate", {"prompt": "x"}),
    ("/api/generate", {"prompt": "x", "raw": True}),
]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def test_the_sequence_of_a_client_that_leaves_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            engine, drain = server.api.engine, server.api.services.drain
            engine.script, engine.step_seconds = lambda _: "a long story " * 1500, 0.1
            for path, fields in REQUESTS:
                for stream in (True, False):
                    body = json.dumps({"model": "", **fields, "stream": stream}).encode()
                    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
                    await until(lambda: engine.running)
                    if stream:
                        assert await reader.read(12) == b"HTTP/1.1 200"
                    writer.transport.abort()
                    await until(lambda: not engine.running and not drain.running)

    asyncio.run(main())
