"""Responses with truncation `auto`: what is dropped of a long conversation, at a bounded cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.api_caller import Caller, drive, prompt_of
from support.responses_calls import RESPONSES, WEATHER
from support.scripted_api import TEMPLATE

from motet.api.responses.truncation import units
from motet.api.schema.chat_messages import FunctionCall, Message, ToolCall
from motet.engine.client.template_renderer import TemplateRenderer

AUTO: dict[str, Any] = {"truncation": "auto"}
STRICT = (
    "{% for m in messages %}{% if loop.first and m.role == 'assistant' %}{{ raise_exception('the user begins') }}"
    "{% endif %}{% endfor %}" + TEMPLATE
)


def says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def test_a_long_conversation_is_cut_with_little_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renders = []
    render = TemplateRenderer.render

    async def counted(self: TemplateRenderer, *args: Any) -> str:
        renders.append(args)
        return await render(self, *args)

    monkeypatch.setattr(TemplateRenderer, "render", counted)

    async def scenario(caller: Caller) -> None:
        items = [says("user", f"item {n}") for n in range(1201)]
        await caller.answer(RESPONSES, {**AUTO, "input": items, "model": "shelf:one"})
        first = int(prompt_of(caller).partition("item ")[2].partition("<")[0])
        assert prompt_of(caller).count("item") == 1201 - first
        assert 1900 < len(caller.api.engine.submits[-1].prompt) < 2048, "no more are dropped than must be"
        assert len(caller.api.shelf.tokens) == 1
        assert len(renders) <= 12

    drive(tmp_path, scenario)


def test_instructions_and_the_last_message_are_never_dropped(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        items = [says("developer", "Be kind."), says("user", "x" * 1500), says("user", "y" * 1500)]
        await caller.answer(RESPONSES, {**AUTO, "input": items, "instructions": "Be brief."})
        assert "Be brief." in prompt_of(caller)
        assert "Be kind." in prompt_of(caller)
        assert "xx" not in prompt_of(caller)
        found = await caller.error(RESPONSES, {**AUTO, "input": [says("user", "hi"), says("user", "y" * 3000)]})
        assert found == (400, "context_length_exceeded", "input")
        found = await caller.error(RESPONSES, {**AUTO, "input": "hi", "max_output_tokens": 4000})
        assert found == (400, "context_length_exceeded", "max_output_tokens")

    drive(tmp_path, scenario)


def test_results_go_with_their_calls(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Oslo"}'}
    result = {"type": "function_call_output", "call_id": "c", "output": "wet"}

    async def scenario(caller: Caller) -> None:
        items = [says("user", "x" * 900), {**call, "arguments": '{"city": "%s"}' % ("y" * 900)}, result]
        await caller.answer(RESPONSES, {**AUTO, "input": [*items, says("user", "z" * 900)], "tools": [WEATHER]})
        assert "zzz" in prompt_of(caller)
        assert "wet" not in prompt_of(caller)
        kept = [says("user", "x" * 1900), call, result]
        await caller.answer(RESPONSES, {**AUTO, "input": kept, "tools": [WEATHER]})
        assert "xxx" not in prompt_of(caller)
        assert "Oslo" in prompt_of(caller)
        assert "wet" in prompt_of(caller)

    drive(tmp_path, scenario)


def test_calls_and_results_form_one_unit() -> None:
    def calls(id: str) -> Message:
        return Message("assistant", None, tool_calls=[ToolCall(id, FunctionCall("f", "{}"))])

    def result(id: str) -> Message:
        return Message("tool", "x", tool_call_id=id)

    system, user = Message("system", "a"), Message("user", "b")
    assert units([system, user, calls("1"), result("1"), user]) == [[1], [2, 3], [4]]
    assert units([user, calls("1"), user, result("1")]) == [[0], [2], [1, 3]], "the last result keeps its call"
    assert units([user, system]) == [[0], []]
    assert units([calls("1"), result("1"), calls("1"), result("1")]) == [[0, 1], [2, 3]]


def test_a_template_that_wants_the_user_first_gets_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        turns = [says(role, letter * 600) for role, letter in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
        await caller.answer(RESPONSES, {**AUTO, "input": [*turns, says("user", "g" * 600)]})
        assert "eee" in prompt_of(caller), "three would fit only without the user's before them"
        assert "ddd" not in prompt_of(caller)
        found = await caller.error(RESPONSES, {**AUTO, "input": turns[1:3]})
        assert found == (400, "invalid_value", "input"), "what fits is not cut to please the template"

    drive(tmp_path, scenario, STRICT)
