"""Calls of LoRAX's routes on the scripted API."""

from __future__ import annotations

import json
from typing import Any

from support.api_caller import Caller

PATHS = ("/", "/invocations", "/generate", "/generate_stream")


def body(inputs: str = "hi", **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters}


async def post(caller: Caller, path: str, sent: dict[str, Any]) -> tuple[int, Any, Any]:
    """Status, JSON and headers."""
    response = await caller.client.post(path, json=sent)
    return response.status_code, json.loads(await response.get_data()), response.headers


async def events(caller: Caller, sent: dict[str, Any], path: str = "/generate_stream") -> list[Any]:
    response = await caller.client.post(path, json=sent)
    content = (await response.get_data()).decode()
    assert response.status_code == 200, content
    assert response.content_type.startswith("text/event-stream")
    assert "[DONE]" not in content
    return [json.loads(line.removeprefix("data: ")) for line in content.splitlines() if line]
