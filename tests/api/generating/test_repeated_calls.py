"""With required tool calls, a call that repeats an earlier one ends the answer and is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, MESSAGES, Caller, drive
from support.responses_calls import RESPONSES, events_of

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


OSLO, BERGEN, NOW = call("weather", city="Oslo"), call("weather", city="Bergen"), call("time")
ASKED: dict[str, Any] = {"messages": MESSAGES, "tools": [TOOL, OTHER], "tool_choice": "required"}


def streamed_calls(content: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The calls and the finish reasons of a stream."""
    calls: dict[int, list[str]] = {}
    reasons = []
    for line in filter(None, content.split("\n\n")):
        if line == "data: [DONE]":
            continue
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            for delta in choice["delta"].get("tool_calls", ()):
                made = calls.setdefault(delta["index"], ["", ""])
                made[0] += delta["function"].get("name", "")
                made[1] += delta["function"].get("arguments", "")
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return [(name, arguments) for name, arguments in calls.values()], reasons


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize(
    ("said", "made"),
    [
        ([OSLO] * 9, [("weather", "Oslo")]),
        ([OSLO, BERGEN, OSLO, BERGEN], [("weather", "Oslo"), ("weather", "Bergen")]),
        ([NOW, OSLO, NOW, BERGEN], [("time", None), ("weather", "Oslo")]),
        ([OSLO, BERGEN], [("weather", "Oslo"), ("weather", "Bergen")]),
    ],
)
def test_an_identical_call_ends_the_list(
    tmp_path: Path, said: list[str], made: list[tuple[str, str | None]], at_once: int
) -> None:
    async def scenario(caller: Caller) -> None:
        engine = caller.api.engine
        engine.script, engine.at_once = (lambda _: "\n".join(said)), at_once
        [choice] = (await caller.answer(CHAT, ASKED))["choices"]
        calls = [made["function"] for made in choice["message"]["tool_calls"]]
        assert [(c["name"], json.loads(c["arguments"]).get("city")) for c in calls] == made
        assert choice["finish_reason"] == "tool_calls"
        assert not engine.running
        stream = await caller.post(CHAT, {**ASKED, "stream": True})
        found, reasons = streamed_calls((await stream.get_data()).decode())
        assert [(name, json.loads(arguments).get("city")) for name, arguments in found] == made
        assert reasons == ["tool_calls"]
        flat = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("weather", "time")]
        events = await events_of(caller, {"input": "hi", "tools": flat, "tool_choice": "required"})
        response = events[-1]["response"]
        assert response["status"] == "completed"
        assert [item["name"] for item in response["output"]] == [name for name, _ in made]
        whole = await caller.answer(RESPONSES, {"input": "hi", "tools": flat, "tool_choice": "required"})
        assert [item["name"] for item in whole["output"]] == [name for name, _ in made]

    drive(tmp_path, scenario)


def test_the_engine_stops_at_the_repetition(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "\n".join([OSLO] * 20)
        answer = await caller.answer(CHAT, {**ASKED, "n": 2})
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["tool_calls"] * 2
        assert answer["usage"]["completion_tokens"] <= 2 * 2 * (len(OSLO) + 1)

    drive(tmp_path, scenario)


def test_a_repetition_that_is_cut_is_not_shown(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: f"{OSLO}\n{OSLO}"
        [choice] = (await caller.answer(CHAT, {**ASKED, "max_tokens": len(OSLO) + 40}))["choices"]
        assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "length")

    drive(tmp_path, scenario)


def test_a_model_that_is_free_not_to_call_may_call_twice(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: f"{OSLO}\n{OSLO}"
        [choice] = (await caller.answer(CHAT, {**ASKED, "tool_choice": "auto"}))["choices"]
        assert len(choice["message"]["tool_calls"]) == 2

    drive(tmp_path, scenario)
