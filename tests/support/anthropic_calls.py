"""Calls of Anthropic's routes on the scripted API."""

from __future__ import annotations

import json
from typing import Any

from support.api_caller import MESSAGES, Caller

PATH = "/v1/messages"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WEATHER: dict[str, Any] = {"name": "weather", "input_schema": {"type": "object"}}
DEFAULTS: dict[str, Any] = {"max_tokens": 500, "messages": MESSAGES}


async def message(caller: Caller, **body: Any) -> dict[str, Any]:
    """The answer to a request without streaming."""
    answer: dict[str, Any] = await caller.answer(PATH, {**DEFAULTS, **body})
    return answer


async def events(caller: Caller, **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed message."""
    response = await caller.post(PATH, {**DEFAULTS, "stream": True, **body})
    assert response.content_type.startswith("text/event-stream"), await response.get_data()
    parsed = []
    for frame in filter(None, (await response.get_data()).decode().split("\n\n")):
        name, data = frame.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {parsed[-1]['type']}"
    return parsed


async def failure(caller: Caller, path: str = PATH, **body: Any) -> tuple[int, str, str]:
    """Status, type and message of a request that fails."""
    return await failure_of(await caller.post(path, {**DEFAULTS, **body}))


async def failure_of(response: Any) -> tuple[int, str, str]:
    """Status, type and message of a response, whose body has the shape of Anthropic's errors."""
    body = json.loads(await response.get_data())
    assert (set(body), set(body["error"])) == ({"type", "error", "request_id"}, {"type", "message"})
    assert (body["type"], body["request_id"]) == ("error", response.headers["request-id"])
    return response.status_code, body["error"]["type"], body["error"]["message"]
