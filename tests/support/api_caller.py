"""Calls the scripted API without sockets: sends and receives JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from quart import Quart
from support.scripted_api import TEMPLATE, Scripted, scripted_api

from motet.api.app import create_app
from motet.core.settings import Settings

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Caller:
    """Sends and receives JSON."""

    def __init__(self, api: Scripted) -> None:
        self.api = api
        self.app: Quart = create_app(api.services)
        self.client = self.app.test_client()

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        return await self.client.post(path, json={"model": "", **body}, headers=headers)

    async def answer(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        response = await self.post(path, body, **headers)
        assert response.status_code == 200, await response.get_data()
        return await response.get_json()

    async def error(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, str, str | None]:
        response = await self.post(path, body, **headers)
        error = (await response.get_json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status_code, error["code"], error["param"]


def drive(
    tmp_path: Path,
    scenario: Callable[[Caller], Awaitable[None]],
    template: str | None = TEMPLATE,
    settings: Settings | None = None,
) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path, settings, template) as api:
            await scenario(Caller(api))

    asyncio.run(main())


def prompt_of(caller: Caller) -> str:
    """The prompt of the last request to the engine."""
    return caller.api.services.tokenizer.decode(caller.api.engine.submits[-1].prompt, skip_special_tokens=False)
