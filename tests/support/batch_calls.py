"""Batches on the scripted server: lines, uploads, and waiting for the end."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from support.scripted_server import Running, scripted_server

from motet.api.batches.runner import BatchRunner
from motet.core.settings import Settings

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


def line(custom_id: str, content: str = "hi", url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"model": "", "messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(entry).encode() for entry in lines)


async def upload(client: AsyncOpenAI, content: bytes) -> str:
    return (await client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")).id


async def finished(client: AsyncOpenAI, id: str) -> Any:
    async with asyncio.timeout(20):
        while (batch := await client.batches.retrieve(id)).status not in ENDED:
            await asyncio.sleep(0.05)
    return batch


async def lines_of(client: AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    return [json.loads(entry) for entry in (await client.files.content(file)).text.splitlines()]


def drive(
    tmp_path: Path,
    scenario: Callable[[AsyncOpenAI, Running], Awaitable[None]],
    settings: Settings | None = None,
    runs: bool = True,
) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path, settings) as server:
            runner = BatchRunner(server.api.services)
            if runs:
                runner.start()
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            await scenario(client, server)
            await client.close()
            await runner.close()

    asyncio.run(main())
