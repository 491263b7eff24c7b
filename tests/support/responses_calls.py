"""Calls of OpenAI's Responses routes on the scripted API."""

from __future__ import annotations

import json
from typing import Any

from support.api_caller import Caller

RESPONSES = "/v1/responses"
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


async def events_of(caller: Caller, body: dict[str, Any]) -> list[dict[str, Any]]:
    return await read_events(await caller.post(RESPONSES, {**body, "stream": True}))


async def read_events(response: Any) -> list[dict[str, Any]]:
    """The events of a streamed response."""
    parsed = []
    for frame in filter(None, (await response.get_data()).decode().strip().split("\n\n")):
        kind, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        parsed.append(event)
    return parsed
