"""Tools in chat: how the prompt lists them, what is refused, and how calls come back, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from support.api_caller import CHAT, MESSAGES, Caller, drive, prompt_of
from support.scripted_server import scripted_server

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
OTHER = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
UNSAYABLE = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}
NAMED = {"type": "function", "function": {"name": "weather"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_a_call_is_read_back(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: f"Let me see.\n{CALL}\n{CALL}"
        answer = await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL]})
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see."
        calls = choice["message"]["tool_calls"]
        assert [call["function"] for call in calls] == [{"name": "weather", "arguments": '{"city": "Oslo"}'}] * 2
        assert len({call["id"] for call in calls}) == 2
        one = await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL], "parallel_tool_calls": False})
        assert len(one["choices"][0]["message"]["tool_calls"]) == 1
        caller.api.engine.script = lambda request: CALL
        bare = await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL], "n": 2})
        assert [choice["message"]["content"] for choice in bare["choices"]] == [None, None]

    drive(tmp_path, scenario)


def test_an_answer_that_is_cut_keeps_its_reason(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: CALL
        answer = await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL], "max_tokens": 50})
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == CALL[CALL.index('{"city') : 50]

    drive(tmp_path, scenario)


def test_tools_are_in_the_template_or_in_the_system_message(tmp_path: Path) -> None:
    async def as_text(caller: Caller) -> None:
        messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
        await caller.answer(CHAT, {"messages": messages, "tools": [TOOL, OTHER]})
        prompt = prompt_of(caller)
        assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions")
        assert '"name": "weather"' in prompt
        await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL, OTHER], "tool_choice": "none"})
        assert "weather" not in prompt_of(caller)
        await caller.answer(
            CHAT, {"messages": MESSAGES, "tools": [TOOL, OTHER], "tool_choice": allowed("auto", "time")}
        )
        assert "weather" not in prompt_of(caller)
        assert '"time"' in prompt_of(caller)

    async def by_template(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL]})
        assert prompt_of(caller) == "weather:hi"

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    drive(tmp_path / "a", as_text)
    drive(tmp_path / "b", by_template, template="{{ tools[0].function.name }}:{{ messages[0].content }}")


@pytest.mark.parametrize(
    ("choice", "grammar"),
    [
        ("auto", False),
        ("none", False),
        ("required", True),
        (NAMED, True),
        (allowed("auto", "weather"), False),
        (allowed("required", "weather"), True),
    ],
)
def test_what_must_be_a_call_is_held_to_it(tmp_path: Path, choice: Any, grammar: bool) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL, OTHER], "tool_choice": choice})
        spec = caller.api.engine.submits[-1].grammar
        assert (spec is not None) == grammar
        if spec is not None and choice != "required":
            assert "time" not in spec.text
        strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
        await caller.answer(CHAT, {"messages": MESSAGES, "tools": [strict], "tool_choice": choice})
        assert (caller.api.engine.submits[-1].grammar is not None) == (choice != "none")

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "rain"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "response_format": {"type": "choice", "choice": ["a"]}}, "response_format"),
        ({"tools": [TOOL], "tool_choice": allowed("required")}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}]},
            "tools",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, body: dict[str, Any], param: str) -> None:
    async def scenario(caller: Caller) -> None:
        status, _, found = await caller.error(CHAT, {"messages": MESSAGES, **body})
        assert status == 400
        assert found is not None
        assert found.startswith(param)
        assert caller.api.engine.submits == []

    drive(tmp_path, scenario)


def test_the_sdk_puts_a_streamed_call_together(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            server.api.engine.script = lambda request: f"Let me see.\n{CALL}\n{CALL}"
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
            options: Any = {"model": "", "messages": MESSAGES, "tools": [TOOL], "n": 2}
            async with client.chat.completions.stream(**options) as stream:
                final = await stream.get_final_completion()
            for choice in final.choices:
                assert choice.finish_reason == "tool_calls"
                assert choice.message.content == "Let me see."
                assert choice.message.tool_calls is not None
                assert [json.loads(c.function.arguments) for c in choice.message.tool_calls] == [{"city": "Oslo"}] * 2
            await client.close()

    asyncio.run(main())


def test_special_tokens_reach_only_the_parser(tmp_path: Path) -> None:
    """<|im_start|> is special in this tokenizer: unless it is a marker, it is never part of the text."""

    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: f"<|im_start|>{CALL}"
        answer = await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL]})
        assert answer["choices"][0]["message"]["content"] is None

    drive(tmp_path, scenario)


@pytest.mark.parametrize(("fields", "several"), [({}, False), ({"parallel_tool_calls": True}, True)])
def test_a_function_that_is_named_is_called_once(tmp_path: Path, fields: dict[str, Any], several: bool) -> None:
    async def scenario(caller: Caller) -> None:
        named = {"tool_choice": {"type": "function", "function": {"name": TOOL["function"]["name"]}}}
        await caller.answer(CHAT, {"messages": MESSAGES, "tools": [TOOL, OTHER], **named, **fields})
        grammar = caller.api.engine.submits[-1].grammar
        assert grammar is not None
        assert ("call)*" in grammar.text) is several

    drive(tmp_path, scenario)


def test_options_of_the_template(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        last = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
        await caller.answer(CHAT, {"messages": last, "continue_final_message": True})
        echoed = await caller.answer(CHAT, {"messages": last, "continue_final_message": True, "echo": True})
        assert echoed["choices"][0]["message"]["content"] == last[-1]["content"] + "Hello!"
        assert prompt_of(caller) == "hi|Well, "
        await caller.answer(
            CHAT, {"messages": MESSAGES, "add_generation_prompt": False, "chat_template_kwargs": {"x": 1}}
        )
        assert prompt_of(caller) == "hi|1"
        await caller.answer(CHAT, {"messages": MESSAGES, "reasoning_effort": "high"})
        assert prompt_of(caller) == "hi|>high"
        assert await caller.error(CHAT, {"messages": MESSAGES, "continue_final_message": True}) == (
            400,
            "invalid_value",
            "continue_final_message",
        )
        found = await caller.error(CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}})
        assert found == (400, "invalid_value", "chat_template_kwargs.messages")
        found = await caller.error(CHAT, {"messages": MESSAGES, "documents": [{"text": "x"}]})
        assert found == (400, "unsupported_parameter", "documents")

    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role != 'assistant' %}|{% endif %}{% endfor %}{{ x }}"
        "{% if add_generation_prompt %}>{% endif %}{{ reasoning_effort }}"
    )
    drive(tmp_path, scenario, template=template)


@pytest.mark.parametrize("text", ["<", "|", "e", "<|", "assistant", " a ", "hi"])
def test_an_answer_can_be_begun_with_anything(tmp_path: Path, text: str) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

    async def scenario(caller: Caller) -> None:
        last = [*MESSAGES, {"role": "assistant", "content": text}]
        await caller.answer(CHAT, {"messages": last, "continue_final_message": True})
        assert prompt_of(caller).endswith(f"<|im_start|>assistant\n{text}")

    drive(tmp_path, scenario, template)


def test_the_only_call_keeps_the_text_before_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: f"Well. {CALL} More."
        asked = {"messages": MESSAGES, "tools": [TOOL], "parallel_tool_calls": False, "stop": ["Well. <tool_call>!"]}
        message = (await caller.answer(CHAT, asked))["choices"][0]["message"]
        assert (message["content"], len(message["tool_calls"])) == ("Well.", 1)

    drive(tmp_path, scenario)
