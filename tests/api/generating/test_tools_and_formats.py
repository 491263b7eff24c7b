"""Tools together with a response format, schemas that no grammar can express, and truncated calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from support.api_caller import CHAT, MESSAGES, Caller, drive, prompt_of
from support.scripted_api import TEMPLATE

from motet.core.output_format import GrammarSpec
from motet.engine.client.llguidance_grammar import grammar_source

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
NOT = {"type": "object", "not": {"required": ["x"]}}
WRITES_CALL = "{% for c in m.tool_calls %}{{ c.function.arguments|tojson }}{% endfor %}"
READS_CALLS = "{% for m in messages %}" + WRITES_CALL + "{% endfor %}"


def sayable(spec: GrammarSpec, text: str) -> bool:
    """Whether a grammar lets `text` through, in a tokenizer of one token a byte."""
    matcher = LLMatcher(LLTokenizer("byte"), grammar_source(spec))
    return bool(all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"type": "json_object"}, '{"a": 1}', "Well."),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": CITY}}, '{"city": "Oslo"}', '{"town": "Oslo"}'),
        ({"type": "regex", "regex": "a/b\\/c\n[0-9]+"}, "a/b/c\n12", "a/b/c"),
    ],
)
def test_an_answer_is_calls_or_has_its_form(tmp_path: Path, form: Any, good: str, bad: str) -> None:
    async def scenario(caller: Caller) -> None:
        asked = {"messages": MESSAGES, "tools": [TOOL], "response_format": form}
        for choice, allowed in (("auto", (CALL, good)), ("required", (CALL,)), ("none", (good,))):
            await caller.answer(CHAT, {**asked, "tool_choice": choice})
            spec = caller.api.engine.submits[-1].grammar
            assert spec is not None
            assert [text for text in (CALL, good, bad, CALL.replace("Oslo", "Oslo\n")) if sayable(spec, text)] == list(
                allowed
            )
        caller.api.engine.script = lambda _: good
        [choice] = (await caller.answer(CHAT, asked))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (good, "stop")

    drive(tmp_path, scenario)


def test_schemas_that_no_grammar_can_say_do_not_count_unless_strict(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
        "patternProperties": {"^x": {"type": "string", "pattern": "^(?!no)"}},
        "propertyNames": {"type": "string"},
        **NOT,
    }
    function = {"name": "f", "parameters": schema}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}

    async def scenario(caller: Caller) -> None:
        for fields in (
            {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
            {"response_format": form},
        ):
            await caller.answer(CHAT, {"messages": MESSAGES, **fields})
            spec = caller.api.engine.submits[-1].grammar
            assert spec is not None
            assert '"integer"' in spec.text, "the rest does"
        strict = {**form, "json_schema": {**form["json_schema"], "strict": True}}  # type: ignore[dict-item]
        found = await caller.error(CHAT, {"messages": MESSAGES, "response_format": strict})
        assert found[:2] == (400, "invalid_grammar")
        assert (found[2] or "").startswith("response_format")

    drive(tmp_path, scenario)


def test_the_part_of_a_schema_that_is_refused_is_named(tmp_path: Path) -> None:
    overlap = {"oneOf": [{"type": "object", "properties": {name: {"type": "string"}}} for name in "ab"]}
    schema = {"type": "object", "properties": {"x": overlap}}

    async def scenario(caller: Caller) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
        error = (await (await caller.post(CHAT, {"messages": MESSAGES, "response_format": form})).get_json())["error"]
        assert error["param"] == "response_format.json_schema.schema.properties.x.oneOf"
        assert f"{error['param']}: oneOf with alternatives that overlap" in error["message"]
        assert "coerce_one_of" not in error["message"]
        flat = {"type": "json_schema", "name": "n", "strict": True, "schema": schema}
        error = (await (await caller.post("/v1/responses", {"input": "hi", "text": {"format": flat}})).get_json())[
            "error"
        ]
        assert error["param"] == "text.format.schema.properties.x.oneOf"
        function = {"name": "f", "strict": True, "parameters": schema}
        asked = {"messages": MESSAGES, "tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        error = (await (await caller.post(CHAT, asked)).get_json())["error"]
        assert error["param"] == "tools[0].function.parameters"
        assert "oneOf with alternatives that overlap" in error["message"]

    drive(tmp_path, scenario)


def test_the_function_whose_schema_is_wrong_is_named(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        wrong = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/nowhere"}}}
        asked = {"messages": MESSAGES, "tools": [TOOL, wrong], "tool_choice": "required"}
        error = (await (await caller.post(CHAT, asked)).get_json())["error"]
        assert (error["param"], error["code"]) == ("tools[1].function.parameters", "invalid_grammar")
        assert error["message"] == "the output grammar is invalid: Pointer '/nowhere' does not exist"

    drive(tmp_path, scenario)


@pytest.mark.parametrize("length", range(0, len(CALL), 7))
def test_a_forced_call_that_is_cut_leaves_no_text(tmp_path: Path, length: int) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: CALL
        asked = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", "max_tokens": length or 1}
        [choice] = (await caller.answer(CHAT, asked))["choices"]
        assert (choice["message"]["content"] or "", choice["finish_reason"]) == ("", "length")

    drive(tmp_path, scenario)


def test_a_call_that_ends_in_the_middle_is_no_reason_to_make_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: CALL.replace("Oslo", "Oslo. Now")
        asked = {"messages": MESSAGES, "tools": [TOOL], "stop": [". "]}
        [choice] = (await caller.answer(CHAT, asked))["choices"]
        [call] = choice["message"]["tool_calls"]
        assert (call["function"]["arguments"], choice["finish_reason"]) == ('{"city": "Oslo', "stop")

    drive(tmp_path, scenario)


@pytest.mark.parametrize("template", [TEMPLATE, READS_CALLS])
def test_a_call_that_was_cut_may_come_back(tmp_path: Path, template: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Os'}}
    history = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "bad JSON"}]

    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": history, "tools": [TOOL]})
        assert r"{\"city\": \"Os" in prompt_of(caller)

    drive(tmp_path, scenario, template)
