"""Custom tools in chat: in the prompt, constrained by their grammar, called, streamed and sent back."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from openai import AsyncOpenAI
from support.api_caller import CHAT, MESSAGES, Caller, drive, prompt_of
from support.scripted_server import scripted_server

from motet.api.generating.custom_tools import InputReader
from motet.engine.client.llguidance_grammar import grammar_source

SQL = 'start: "SELECT " /[a-z]+/ ";" LF\n%import common.LF'
QUERY = "SELECT ships;\n"


def tool(syntax: str | None = None, definition: str = "", name: str = "sql") -> dict[str, Any]:
    form = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}} if syntax else {"type": "text"}
    return {"type": "custom", "custom": {"name": name, "description": "Runs it", "format": form}}


def call(text: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'sql', 'arguments': {'input': text}})}\n</tool_call>"


RAW = f'<tool_call>\n{{"name": "sql"}}\n{QUERY}'


@pytest.mark.parametrize(("given", "said"), [(tool(), call(QUERY)), (tool("lark", SQL), RAW)], ids=["text", "grammar"])
def test_a_call_comes_back_with_its_input(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            server.api.engine.script = lambda _: f"Let me see.\n{said}"
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
            options: Any = {"model": "", "messages": MESSAGES, "tools": [given]}
            [choice] = (await client.chat.completions.create(**options)).choices
            assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
            [made] = choice.message.tool_calls or ()
            assert made.type == "custom"
            assert (made.custom.name, made.custom.input) == ("sql", QUERY)
            texts, kinds, names = [], [], []
            async for chunk in await client.chat.completions.create(**options, stream=True):
                for delta in chunk.choices[0].delta.tool_calls or ():
                    custom: Any = (delta.model_extra or {})["custom"]
                    kinds += [delta.type] if delta.type else []
                    names += [custom["name"]] if "name" in custom else []
                    texts.append(custom["input"])
            assert (kinds, names, "".join(texts)) == (["custom"], ["sql"], QUERY)
            assert len(texts) > 3, "the input comes in pieces"
            await client.close()

    asyncio.run(main())


def allows(caller: Caller, text: str) -> bool:
    spec = caller.api.engine.submits[-1].grammar
    assert spec is not None
    matcher = LLMatcher(LLTokenizer("byte"), grammar_source(spec), log_level=0)
    return bool(all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting())


@pytest.mark.parametrize(("syntax", "definition"), [("lark", SQL), ("regex", r"SELECT [a-z]+;\n")])
def test_a_grammar_is_enforced_whenever_the_tool_is_called(tmp_path: Path, syntax: str, definition: str) -> None:
    async def scenario(caller: Caller) -> None:
        for choice in ("auto", "required", {"type": "custom", "custom": {"name": "sql"}}):
            body = {"messages": MESSAGES, "tools": [tool(syntax, definition)], "tool_choice": choice}
            caller.api.engine.script = lambda _: RAW
            await caller.answer(CHAT, body)
            assert json.dumps(definition.splitlines()[0])[1:-1] in prompt_of(caller)
            assert allows(caller, RAW)
            assert not allows(caller, RAW.replace("SELECT", "DELETE"))
            assert allows(caller, "Hello.") is (choice == "auto")

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        (tool("lark", "start: nothing"), "tools[0].custom.format.grammar.definition", "the tool 'sql'"),
        (tool("regex", r"a\b"), "tools[0].custom.format.grammar.definition", "the tool 'sql'"),
        (tool("ebnf", "x"), "tools[0].custom.format.grammar.syntax", "is not one of lark, regex"),
        ({"type": "custom", "custom": {"name": "a b"}}, "tools[0].custom.name", ""),
        ({"type": "custom"}, "tools[0].custom", "missing"),
    ],
)
def test_mistakes_name_the_tool(tmp_path: Path, given: dict[str, Any], param: str, words: str) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.post(CHAT, {"messages": MESSAGES, "tools": [given]})
        error = (await response.get_json())["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert words in error["message"]

    drive(tmp_path, scenario)


def test_calls_are_taken_back(tmp_path: Path) -> None:
    made = {"id": "c", "type": "custom", "custom": {"name": "sql", "input": QUERY}}
    history = [{"role": "assistant", "tool_calls": [made]}, {"role": "tool", "tool_call_id": "c", "content": "3 ships"}]

    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": [*MESSAGES, *history], "tools": [tool()]})
        assert call(QUERY) in prompt_of(caller)
        broken = {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}
        found = await caller.error(CHAT, {"messages": [*MESSAGES, broken]})
        assert found == (400, "missing_required_parameter", "messages[1].tool_calls[0].custom")

    drive(tmp_path, scenario)


def read(arguments: str, places: list[int]) -> str:
    """The input in the arguments, which come in pieces."""
    reader, edges = InputReader(raw=False), sorted({0, len(arguments), *(p for p in places if p < len(arguments))})
    return "".join(reader.push(arguments[a:b]) for a, b in itertools.pairwise(edges)) + reader.finish()


@given(st.text(), st.lists(st.integers(0, 80)), st.booleans())
def test_inputs_are_read_however_they_are_cut(text: str, places: list[int], ascii: bool) -> None:
    assert read(json.dumps({"input": text}, ensure_ascii=ascii), places) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"reason": "x", "input": "a"}', "a"),
        ('{"patch": "a"}', '{"patch": "a"}'),
        ('{"input": 3}', '{"input": 3}'),
        ('{"input": "a\\ud800b"}', "a\ufffdb"),
        ('{"input": "a\\', "a"),
        ('{"in', ""),
        ('{"input": "a\nb"}', "a\nb"),
    ],
)
def test_odd_arguments_are_read_as_far_as_they_go(arguments: str, text: str) -> None:
    assert read(arguments, []) == text
    assert read(arguments, list(range(40))) == text
