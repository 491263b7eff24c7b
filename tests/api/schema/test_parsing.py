"""Bodies parsed into requests: what is accepted, and the error for each mistake."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.ignored_fields_header import MAX_IGNORED_BYTES, header_value
from motet.api.schema.parsing import parse_chat, parse_completion
from motet.core.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "", "messages": MESSAGES}
PROMPT: dict[str, Any] = {"model": "", "prompt": "hi"}


BAD_CHAT = [
    ({"model": None}, "model", "invalid_type"),
    ({"model": 3}, "model", "invalid_type"),
    ({"messages": None}, "messages", "invalid_type"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": MESSAGES * 4097}, "messages", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{}] * 16_385}]}, "messages", "invalid_value"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}] * 16_385}]}, "messages", "invalid_value"),
    ({"messages": [1]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "tool", "content": None}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    ({"messages": [{**MESSAGES[0], "audio": {"id": "a"}}]}, "messages[0].audio", "unsupported_parameter"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "0.5"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_type"),
    ({"min_p": -1}, "min_p", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2**40}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 10**60}, "seed", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"stop": 7}, "stop", "invalid_type"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"logprobs": 3}, "logprobs", "invalid_type"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    ({"response_format": "json"}, "response_format", "invalid_type"),
    ({"service_tier": "gold"}, "service_tier", "invalid_value"),
    ({"api_token": 5}, "api_token", "invalid_type"),
    *(
        (fields, next(iter(fields)), "unsupported_parameter")
        for fields in (
            {"functions": [{"name": "f"}]},
            {"function_call": {"name": "f"}},
            {"audio": {"voice": "x"}},
            {"modalities": ["text", "audio"]},
            {"store": True},
            {"best_of": 3},
            {"chat_template": "{{ messages }}"},
            {"guided_json": {"type": "object"}},
            {"grammar": "root ::= [a-z]"},
            {"grammar": {"type": "json", "value": {}}},
            {"lora": [{"id": 0, "scale": 0}]},
            {"lora_request": {"lora_name": "a"}},
            {"adapters": "dir"},
            {"format": "json"},
            {"extra_body": {"top_k": 1}},
            {"nvext": {"ignore_eos": True}},
            {"options": {"temperature": 0}},
            {"n_predict": 5},
            {"max_new_tokens": 5},
            {"repeat_penalty": 1.1},
            {"mirostat": 2},
            {"system": "Be brief."},
            {"max_output_tokens": 5},
        )
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD_CHAT, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({**CHAT, **fields})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.message


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"messages": [{"role": "human", "content": "a"}]}, "'human' is not one of"),
        ({"messages": [{"role": "human", "content": "a"}]}, "assistant"),
        ({"service_tier": "fast"}, "service_tier: 'fast' is not one of auto, default"),
        ({"tool_choice": "f"}, "'f' is not one of"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type: 'web_search' is not one of function, custom"),
        ({"functions": [{"name": "f"}]}, "use tools, or leave it out"),
        ({"messages": [{"role": "assistant", "content": "a", "function_call": {}}]}, "use tool_calls, or"),
        ({"guided_json": {}, "guided_choice": ["a"]}, "use response_format, or leave it out"),
        ({"audio": {"voice": "alloy"}}, "would change the answer; leave it out"),
        ({"grammar": "root ::= [a-z]"}, 'use response_format: {"type": "grammar", "grammar": …}'),
        ({"lora": [{"id": 0, "scale": 0}]}, "use model to name the adapter, or"),
        ({"format": "json"}, 'use response_format, such as {"type": "json_object"}, or'),
        ({"extra_body": {"top_k": 1}}, "at the top level of the body; send them there"),
        ({"n_predict": 5}, "use max_tokens, or"),
        ({"max_tokens": -1}, "max_tokens: expected `int` >= 1; leave it out to use the rest of the context"),
        *(
            ({"messages": [{"role": "user", "content": [{"type": kind}]}]}, f"{kind!r} parts are not supported")
            for kind in ("image_url", "input_image", "input_audio", "thinking", "file")
        ),
    ],
)
def test_an_error_says_how_to_fix_it(fields: dict[str, Any], fix: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({**CHAT, **fields})
    assert fix in caught.value.message


@pytest.mark.parametrize("field", ["model", "messages"])
def test_what_is_missing_is_named(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({name: value for name, value in CHAT.items() if name != field})
    assert (caught.value.param, caught.value.code) == (field, "missing_required_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x", "echo": True}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 3, "n": 2, "stream": True}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"typical_p": 0}, "typical_p"),
        ({"priority": 1000}, "priority"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"merged_adapters": {"ids": []}}, "merged_adapters.ids"),
        ({"merged_adapters": {"ids": ["a"], "merge_strategy": "ties"}}, "merged_adapters.merge_strategy"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1, 2]}}, "merged_adapters.weights"),
        ({"merged_adapters": {"ids": ["a"]}, "adapter_id": "b"}, "merged_adapters"),
    ],
    ids=str,
)
def test_a_mistake_in_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_completion({**PROMPT, **fields})
    assert caught.value.param == param


NULLS = {name: None for name in ChatRequest.__struct_fields__ if name not in ("model", "messages")}
HARMLESS = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "none",
    "modalities": ["text"],
    "best_of": 1,
    "echo": False,
    "audio": None,
    "n_predict": -1,
    "repeat_penalty": 1.0,
    "xtc_probability": 0,
    "lora": [],
    "extra_body": {},
    "grammar": "",
}
SAME_AGAIN = {
    "max_tokens": 250,
    "n_predict": 250,
    "max_new_tokens": 250,
    "repetition_penalty": 1.1,
    "repeat_penalty": 1.1,
}
"""SillyTavern sends every server's name of a setting at once."""


@pytest.mark.parametrize(
    "fields", [NULLS, HARMLESS, {"temperature": 1}, {"n": 2}, SAME_AGAIN], ids=lambda f: str(f)[:20]
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert parse_chat({**CHAT, **fields}).ignored == ()


def test_what_the_sdk_sends_back_is_accepted() -> None:
    """An answer of ours, appended to the conversation as `message.model_dump()` writes it."""
    answer = {
        "role": "assistant",
        "content": "Ahoy",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert parse_chat({**CHAT, "messages": [*MESSAGES, answer]}).ignored == ()


def test_a_refusal_is_text() -> None:
    parts = [{"type": "refusal", "refusal": "No"}, {"type": "text", "text": "."}]
    messages = [*MESSAGES, {"role": "assistant", "content": parts}, {"role": "assistant", "refusal": "No!"}]
    request = parse_chat({**CHAT, "messages": messages}).request
    assert [message.text() for message in request.messages[-2:]] == ["No.", "No!"]


def test_whole_numbers_are_integers() -> None:
    floats = {"max_tokens": 8.0, "top_k": 3.0, "seed": -1.0, "n": 1.0, "top_logprobs": 2.0, "stop_token_ids": [1.0, 2]}
    parsed = parse_chat({**CHAT, "logprobs": True, "temperature": 1.0, **floats})
    assert {name: getattr(parsed.request, name) for name in floats} == {
        "max_tokens": 8,
        "top_k": 3,
        "seed": -1,
        "n": 1,
        "top_logprobs": 2,
        "stop_token_ids": [1, 2],
    }
    assert type(parsed.request.max_tokens) is int
    assert type(parsed.request.temperature) is float
    assert parse_completion({**PROMPT, "prompt": [[1.0, 2], [3]], "logprobs": 0.0}).request.prompt == [[1, 2], [3]]
    assert parse_completion({**PROMPT, "prompt": [1.0]}).request.prompt == [1]
    for fields in ({"max_tokens": 8.5}, {"seed": 1e300}, {"stop_token_ids": [0.5]}, {"max_tokens": float("inf")}):
        with pytest.raises(InvalidRequest) as caught:
            parse_chat({**CHAT, **fields})
        assert (caught.value.param or "").startswith(next(iter(fields)))
    with pytest.raises(InvalidRequest, match="for the default of 16"):
        parse_completion({**PROMPT, "max_tokens": -1})


def test_null_from_an_assistant_is_empty_and_zero_alternatives_are_none() -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": None}, {"role": "assistant"}, *MESSAGES]
    request = parse_chat({**CHAT, "messages": messages, "logprobs": False, "top_logprobs": 0}).request
    assert [message.text() for message in request.messages] == ["hi", "", "", "hi"]


def test_text_parts_of_the_responses_api_are_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}]
    parsed = parse_chat({**CHAT, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "c"}]}]})
    assert parsed.request.messages[0].text() == "abc"
    assert parsed.ignored == ()


def test_what_is_unknown_is_listed() -> None:
    body = {
        **CHAT,
        "mood": {"type": "content"},
        "messages": [
            {**MESSAGES[0], "mood": "good"},
            {"role": "user", "content": [{"type": "text", "text": "a", "font": "x", "prompt_cache_breakpoint": {}}]},
            {"role": "assistant", "content": "b", "annotations": []},
        ],
        "stream": True,
        "stream_options": {"speed": 3},
        "tools": [{"type": "function", "function": {"name": "f", "speed": 1, "parameters": {"x": 1}}, "b": 2}],
        "metadata": {"any": "thing"},
    }
    parsed = parse_chat(body)
    assert sorted(parsed.ignored) == [
        "messages[0].mood",
        "messages[1].content[0].font",
        "mood",
        "stream_options.speed",
        "tools[0].b",
        "tools[0].function.speed",
    ]
    assert header_value(parsed.ignored).split(",") == list(parsed.ignored)


@given(st.lists(st.text(), max_size=50))
def test_the_header_of_ignored_fields_is_always_a_header(names: list[str]) -> None:
    body = {**PROMPT, **{f"x{name}": 1 for name in names}}
    header = header_value(parse_completion(body).ignored)
    assert header.isascii()
    assert header.isprintable()
    assert len(header) <= MAX_IGNORED_BYTES


def test_the_header_of_ignored_fields_says_that_there_are_more() -> None:
    assert header_value(()) == ""
    assert header_value(["a", "a", "b c"]) == "a,b%20c"
    for names in ([f"x{number}" for number in range(33)], ["é" * 64] * 2 + ["ü" * 64, "ö" * 64], ["😀" * 64 + "a"] * 2):
        header = header_value(parse_completion({**PROMPT, **dict.fromkeys(names, 1)}).ignored)
        assert header.endswith(("...", "%80"))
        assert len(header) <= MAX_IGNORED_BYTES


def test_a_request_shows_no_secret() -> None:
    parsed = parse_chat({**CHAT, "api_token": "hf_secret", "messages": [{"role": "user", "content": "private"}]})
    shown = repr(parsed) + str(parsed.request)
    assert "hf_secret" not in shown
    assert "private" not in shown


@given(
    st.dictionaries(
        st.sampled_from(ChatRequest.__struct_fields__),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_no_body_is_a_fault_of_ours(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_chat({**CHAT, **fields})
