"""Tool calls are parsed from text however it is split into deltas, and no text is lost."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from motet.core.output_format import GrammarSpec
from motet.core.tool_parser import CallPiece, Tool, ToolParser
from motet.plugins.tool_parsers.hermes import Hermes
from motet.plugins.tool_parsers.llama3_json import Llama3Json
from motet.plugins.tool_parsers.tool_json import grammar_schema

Calls = list[tuple[str, str]]
TOOLS = (
    Tool("get_weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("stop", None, {}),
)
NAMED = (*TOOLS, *(Tool(name, None, {}) for name in ("f", "g", 'g"h', "a")))
ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[]<>/ \né', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy", max_size=2), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text("kl{", max_size=3), ARGUMENTS, max_size=3)
WORDS = st.text("ab<t{ \n", max_size=12)


def read(parser: ToolParser, pieces: list[str]) -> tuple[str, Calls]:
    """The text and the calls that a reader finds."""
    reader = parser.reader(NAMED)
    found = [item for piece in pieces for item in reader.push(piece)] + reader.finish()
    calls: list[list[str]] = []
    for item in found:
        if isinstance(item, CallPiece):
            if item.name is not None:
                assert item.index == len(calls)
                calls.append([item.name, ""])
            calls[item.index][1] += item.arguments
    return "".join(item for item in found if isinstance(item, str)), [(name, text) for name, text in calls]


def cut(text: str, places: list[int]) -> list[str]:
    """`text` in pieces."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None)
@given(WORDS, st.lists(st.tuples(st.sampled_from(("f", 'g"h')), OBJECTS), max_size=3), st.lists(st.integers(0, 999)))
def test_hermes_however_it_is_cut(before: str, calls: list[tuple[str, Any]], places: list[int]) -> None:
    text = before + "\n".join(Hermes().call_text(name, arguments) for name, arguments in calls)
    shown, found = read(Hermes(), cut(text, places))
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert shown.strip() == before.strip()
    assert (shown, found) == read(Hermes(), [text])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("f", 'g"h')), OBJECTS), min_size=1, max_size=3), st.lists(st.integers(0)))
def test_llama3_however_it_is_cut(calls: list[tuple[str, Any]], places: list[int]) -> None:
    text = "; ".join(Llama3Json().call_text(name, arguments) for name, arguments in calls)
    for start in ("", "\n", "<|python_tag|>"):
        shown, found = read(Llama3Json(), cut(start + text, places))
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls
        assert shown == ""


FRAGMENTS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "</tool_",
        "<|python_tag|>",
        '{"name": "f", "arguments": {"a": [1, "}"]}}',
    ),
    *('{"name": "zz", "arguments": {}}', '{"arguments": {}, "name": "g"}'),
    *("oops", "{", "}", ";", "; ", "\n", " ", " " * 40, " " * 70, '"', ", ", '{"a": 1}', "é"),
)


@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3"])
@settings(deadline=None, max_examples=200)
@given(fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=8), places=st.lists(st.integers(0, 400), max_size=8))
@example(fragments=["<tool_call>", "oops", "<tool_call>", '{"name": "f", "arguments": {}}'], places=[11, 15])
@example(fragments=['{"name": "f", "parameters": {}', " " * 40, " " * 40, "<|<|"], places=[])
@example(fragments=['<tool_call>{"name": "f", "arguments": {}}', "</tool_call>", "Hello", " ", "bye"], places=[59, 60])
def test_pieces_of_calls_in_any_order_are_read_alike(
    parser: ToolParser, fragments: list[str], places: list[int]
) -> None:
    text = "".join(fragments)
    whole = read(parser, [text])
    assert read(parser, cut(text, places)) == whole == read(parser, list(text))
    assert all(name in ("f", "g") for name, _ in whole[1])


@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3"])
@settings(deadline=None)
@given(text=st.text('<tool_cal>/{}":;name arguments\n|python', max_size=60), places=st.lists(st.integers(0, 99)))
@example(text='<tool_call>{"name": 3}</tool_call> x', places=[])
@example(text='<tool_call>{"name": "f", "arguments": {"a": 1', places=[20])
@example(text='{"name": "f"', places=[])
@example(text="<tool_call>nothing like it", places=[13])
def test_whatever_comes_it_does_not_depend_on_the_cuts(parser: ToolParser, text: str, places: list[int]) -> None:
    shown, calls = read(parser, cut(text, places))
    assert (shown, calls) == read(parser, [text])
    if not calls:
        assert shown.strip() == text.strip() or shown.strip() == text.strip().removeprefix("<|python_tag|>")


def test_what_is_no_call_comes_out_as_text() -> None:
    for text in ('<tool_call>{"name": 3}</tool_call>', "<tool_call>sorry</tool_call>", '<tool_call>{"name": "f"'):
        assert read(Hermes(), [text]) == (text, [])
    for text in ('{"answer": 42}', "I cannot.", '{"name": "f", "para'):
        assert read(Llama3Json(), [text]) == (text, [])


def test_functions_that_are_not_offered_are_not_called() -> None:
    for text in ('{"name": "Bob", "age": 3}', '{"name": "zz", "parameters": {"a": 1}}'):
        assert read(Llama3Json(), [text]) == (text, [])
        assert read(Hermes(), [f"<tool_call>{text}</tool_call>"]) == (f"<tool_call>{text}</tool_call>", [])


def test_tags_that_were_cut_after_a_call_are_no_text() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}'
    for rest in ("", "\n", "}", "\n</tool", "\n</tool_call>", "</tool_call>\n<tool", "</tool_call>\n<tool_call>\n"):
        assert read(Hermes(), [call + rest]) == ("", [("f", "{}")]), rest
    assert read(Hermes(), [f"{call}\n</tool_call> So."]) == ("So.", [("f", "{}")])


def accepts(spec: GrammarSpec, text: str) -> bool:
    """Whether a grammar allows `text` as a whole."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(spec.text))
    return bool(all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting())


@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3"])
@settings(deadline=None, max_examples=200)
@given(st.text(" \t\r\n\f\u00a0;<|x", max_size=4), st.booleans(), st.sampled_from((3, "s")))
def test_no_call_gets_round_a_strict_grammar(parser: ToolParser, before: str, tagged: bool, value: object) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tool = Tool("f", None, {**schema, "additionalProperties": False}, strict=True)
    call = parser.call_text("f", {"a": value})
    text = before + ("<|python_tag|>" if tagged else "") + call
    reader = parser.reader((tool,))
    calls = [piece for piece in [*reader.push(text), *reader.finish()] if isinstance(piece, CallPiece)]
    if value == "s" and calls:
        assert not accepts(parser.text_or_calls((tool,), ()), text)


@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3"])
def test_a_strict_grammar_lets_text_and_calls_through(parser: ToolParser) -> None:
    spec = parser.text_or_calls(TOOLS, ())
    for text in ("", "Hello.", " so", "<", "a < b {c}", parser.call_text("stop", {})):
        assert accepts(spec, text), text


LINES = GrammarSpec("lark", 'start: "begin" LF line+\nline: /(.+)/ LF\n%import common.LF')
RAW = (TOOLS[1], Tool("patch", None, {}, True, LINES), Tool("code", None, {}, True, GrammarSpec("regex", '[0-9]+/"x')))


@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3"])
@pytest.mark.parametrize("places", [[], [1], list(range(200))], ids=str)
def test_a_raw_input_goes_on_to_the_end_of_the_answer(parser: ToolParser, places: list[int]) -> None:
    before, call = ("\n", "<tool_call>\n") if isinstance(parser, Hermes) else ("; ", "")
    patch = 'begin\na "quoted" {line}\n\\ and </tool_call>\n'
    raw, plain = f'{call}{{"name": "patch"}}\n{patch}', parser.call_text("stop", {})
    for spec in (parser.grammar(RAW, True, ()), parser.text_or_calls(RAW, ())):
        for text in (raw, plain + before + raw, plain, f'{call}{{"name": "code"}}\n12/"x'):
            assert accepts(spec, text), text
        for text in (raw + "\n", raw.replace("begin", "end"), f'{call}{{"name": "code"}}\nx'):
            assert not accepts(spec, text), text
    assert not accepts(parser.grammar(RAW, False, ()), plain + before + raw)
    reader = parser.reader(RAW)
    found = [item for piece in cut(plain + before + raw, places) for item in reader.push(piece)] + reader.finish()
    pieces = [piece for piece in found if isinstance(piece, CallPiece)]
    assert [(piece.name, piece.raw) for piece in pieces if piece.name] == [("stop", False), ("patch", True)]
    assert "".join(piece.arguments for piece in pieces if piece.index == 1) == patch


@pytest.mark.parametrize(
    ("parameters", "admits"),
    [
        ({}, False),
        ({"type": "object", "properties": {}}, False),
        ({"type": "object", "properties": {}, "required": []}, False),
        ({"type": "object", "properties": {}, "additionalProperties": True}, True),
        ({"type": "object", "properties": {}, "patternProperties": {"^a": {}}}, True),
        ({"type": "object"}, True),
    ],
)
def test_a_function_without_parameters_is_called_with_an_empty_object(parameters: Any, admits: bool) -> None:
    spec = Hermes().grammar((Tool("f", None, parameters),), False, ())
    assert accepts(spec, Hermes().call_text("f", {}))
    assert accepts(spec, Hermes().call_text("f", {"a": 1})) is admits


def test_what_no_grammar_can_say_binds_strict_functions_alone() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for strict in (False, True):
        spec = Hermes().grammar((Tool("f", None, schema, strict),), False, ())
        wrong, _ = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(spec.text))
        assert wrong is strict


def test_only_patterns_that_cannot_be_said_are_left_out() -> None:
    kept = {
        "properties": {
            "pattern": {"type": "string", "pattern": r"C:\\\\bin"},
            "enum": {"enum": [{"pattern": r"\bx"}], "const": {"pattern": "(?=x)"}},
        }
    }
    found = grammar_schema(kept, strict=False)
    assert found["properties"] == kept["properties"]
    dropped = {"properties": {"enum": {"type": "string", "pattern": r"\bx"}}, "$defs": {"const": {"pattern": "(?!x)"}}}
    found = grammar_schema(dropped, strict=False)
    assert (found["properties"], found["$defs"]) == ({"enum": {"type": "string"}}, {"const": {}})


def test_arguments_stream_as_they_come() -> None:
    reader = Hermes().reader(NAMED)
    assert reader.push('Let me see.\n<tool_call>\n{"name": "f", "arguments": {"ci') == [
        "Let me see.",
        CallPiece(0, "f"),
        CallPiece(0, arguments='{"ci'),
    ]
    assert reader.push('ty": "Oslo"}') == [CallPiece(0, arguments='ty": "Oslo"}')]
    assert reader.push("}\n</tool_call>") == []
    assert reader.finish() == []


def test_other_orders_and_texts_of_arguments() -> None:
    odd = '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>'
    odd += '<tool_call>{"name":"g","arguments":"{}"}</tool_call>'
    assert read(Hermes(), list(odd)) == ("", [("f", '{"x": 1}'), ("g", "{}")])
    assert read(Hermes(), ['<tool_call>{"name": "f", "parameters": {}}']) == ("", [("f", "{}")])


@pytest.mark.parametrize("special", [(), ("<tool_call>", "</tool_call>")], ids=["text", "special"])
@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3"])
def test_grammars_compile(parser: ToolParser, special: tuple[str, ...]) -> None:
    specs = [parser.grammar(TOOLS, several, special) for several in (True, False)]
    for spec in [*specs, parser.text_or_calls(TOOLS, special)]:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(spec.text))
        assert not wrong, messages


def test_the_prompt_describes_the_format_that_the_parser_reads() -> None:
    for parser in (Hermes(), Llama3Json()):
        assert "get_weather" in parser.instructions(TOOLS)
        text = parser.call_text("stop", {})
        assert read(parser, [text]) == ("", [("stop", "{}")])


def test_who_claims_what() -> None:
    assert Hermes().claims("… <tool_call> …")
    assert not Hermes().claims("<|python_tag|>")
    assert Llama3Json().claims("{{ '<|python_tag|>' }}")
    assert not Llama3Json().claims("{{ messages }}")


@given(st.lists(st.integers(0, 200), max_size=6))
def test_a_brace_too_few_or_too_many_costs_no_call(places: list[int]) -> None:
    good = '<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>'
    for first in (good.replace("}}", "}"), good.replace("}}", "}}}"), good.replace("}}", "} ")):
        text = f"{first}\n{good}"
        cuts = sorted({0, len(text), *(place for place in places if place < len(text))})
        pieces = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
        said, calls = read(Hermes(), pieces)
        assert [(name, json.loads(arguments)) for name, arguments in calls] == [("a", {"x": 1})] * 2
        assert said.strip() == ""


@pytest.mark.parametrize("parser", [Hermes(), Llama3Json()], ids=["hermes", "llama3_json"])
@pytest.mark.parametrize("start", ["<tool_call>", "", '<tool_call>{"name": "a", "arguments": {}}'])
@pytest.mark.parametrize("piece", ["aaaa", " " * 32, "}" * 32, '{"name": "', "<tool_", "\n;", '{"a": [', ", "])
def test_the_work_grows_with_the_text_and_no_faster(parser: ToolParser, start: str, piece: str) -> None:
    def seconds(pieces: int) -> float:
        reader = parser.reader(NAMED)
        begun = time.process_time()
        for text in (start, '{"name": "' if piece == "aaaa" else "", *[piece] * pieces):
            reader.push(text)
        reader.finish()
        return time.process_time() - begun

    # Looking at everything again for each piece took 13 s.
    assert seconds(8000) < 30 * seconds(1000) + 1.5
