"""An error in mid-stream is raised by both of OpenAI's packages. The engine follows a script, so that it can fail."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from clients.environments import NODE, node_packages, run
from openai import AsyncOpenAI
from support.api_caller import MESSAGES
from support.scripted_server import Running, scripted_server


def with_failing_engine(tmp_path: Path, scenario: Callable[[Running], Awaitable[None]]) -> None:
    """Run `scenario` beside a server whose engine fails after three tokens."""

    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            server.api.engine.fail_after = 3
            await scenario(server)

    asyncio.run(main())


async def drained(stream: AsyncIterator[Any]) -> int:
    """How many events came before the error, which is raised as an APIError."""
    count = 0
    try:
        async for event in stream:
            assert getattr(event, "type", None) != "response.completed"
            count += 1
    except openai.APIError as error:
        assert "scripted" in str(error)  # noqa: PT017 (events come before it)
        return count
    raise AssertionError("it did not raise")


def test_python_raises(tmp_path: Path) -> None:
    async def scenario(server: Running) -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            chat: Any = await client.chat.completions.create(model="", messages=MESSAGES, stream=True)  # type: ignore
            text: Any = await client.completions.create(model="", prompt="hi", max_tokens=9, stream=True)
            assert await drained(chat) >= 3
            assert await drained(text) == 3
            response = await client.responses.create(model="", input="hi", stream=True)
            assert await drained(response) > 3

    with_failing_engine(tmp_path, scenario)


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no node and npm here")
def test_node_raises(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    shutil.copy(NODE / "broken.mjs", tmp_path / "node")
    (tmp_path / "node" / "node_modules").symlink_to(node_packages() / "node_modules")

    async def scenario(server: Running) -> None:
        printed = await asyncio.to_thread(run, ["node", "broken.mjs", server.url], cwd=tmp_path / "node")
        assert printed.split() == ["chat", "completions", "responses"]

    with_failing_engine(tmp_path / "api", scenario)
