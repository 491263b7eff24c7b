"""Bugs that are reported for other servers: Motet answers these requests correctly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.api_caller import Caller, drive
from support.request_cases import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Row, check, send, stream_events

from motet.core.settings import Settings

USER, EMPTY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}
CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
RESULT = {"role": "tool", "tool_call_id": "a", "content": "1"}
F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
FLAT = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
BY_NAME = {"type": "function", "name": "f"}


def conversation(slug: str, report: str, *messages: dict[str, Any], **expected: Any) -> Row:
    return Row(slug, report, CHAT, {"messages": list(messages)}, **expected)


def no_tools(slug: str, tools: object, **more: object) -> Row:
    return Row(f"no-tools-{slug}", "open-webui #26655, fast-agent #781", CHAT, {"tools": tools, **more})


def output(slug: str, content: object, ignored: str | None = None) -> Row:
    items = [
        USER,
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": content},
    ]
    return Row(f"output-{slug}", "llama.cpp #23465, #23890", RESPONSES, {"input": items}, ignored=ignored)


CALLED = "langchain4j #1958, litellm #39268, mlx-openai-server #205, odysseus #837"
ROLES = "vllm #6862, autogen #1037, #3597, #5965, syftr #107"
ROWS = [
    no_tools("empty", []),
    no_tools("null", None),
    no_tools("empty-auto", [], tool_choice="auto"),
    no_tools("empty-none", [], tool_choice="none"),
    no_tools("null-auto", None, tool_choice="auto"),
    conversation(
        "content-array",
        "open-webui #6514, chatbox #1352, nextcloud #236",
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    ),
    Row(
        "nested-messages",
        "langchain-ai/openwiki #626",
        CHAT,
        {"messages": [MESSAGES]},
        400,
        "invalid_type",
        "messages[0]",
        "expected `object`, got `array`",
    ),
    conversation("same-role-twice", ROLES, USER, USER),
    conversation("system-later", ROLES, USER, {"role": "system", "content": "Be brief."}, USER),
    conversation("assistant-first", ROLES, {"role": "assistant", "content": "Ahoy."}, USER),
    conversation("assistant-empty", "vllm #21089", USER, EMPTY, USER),
    conversation("calls-null", CALLED, USER, {"role": "assistant", "content": None, "tool_calls": CALLS}, RESULT),
    conversation("calls-empty", CALLED, USER, {**EMPTY, "tool_calls": CALLS}, RESULT),
    conversation("calls-alone", CALLED, USER, {"role": "assistant", "tool_calls": CALLS}, RESULT),
    output("texts", [{"type": "input_text", "text": "1"}]),
    output("image", [{"type": "input_image", "image_url": "data:,x"}], "input[2].output[0].input_image"),
    Row(
        "not-parallel",
        "vllm #9451, #26233",
        CHAT,
        {"tools": [F], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60},
        values={"choices.0.message.tool_calls.#": 1},
    ),
    Row(
        "responses-tool-choice",
        "vllm #53626",
        RESPONSES,
        {"tools": [FLAT], "tool_choice": BY_NAME, "max_output_tokens": 40},
        values={"output.0.type": "function_call", "tool_choice": BY_NAME},
    ),
    Row(
        "responses-no-tools",
        "vllm #53626",
        RESPONSES,
        {"tool_choice": "required"},
        400,
        "invalid_value",
        "tool_choice",
        "there are no tools",
    ),
    Row(
        "echo-logprobs",
        "lm-eval #1411, #2989, llama.cpp #27174, vllm-metal #680",
        COMPLETIONS,
        {"prompt": "The sea is", "max_tokens": 0, "echo": True, "logprobs": 1},
        values={
            "choices.0.text": "The sea is",
            "choices.0.logprobs.tokens": ["The", " sea", " is"],
            "choices.0.logprobs.token_logprobs.0": None,
            "choices.0.logprobs.top_logprobs.#": 3,
        },
    ),
    conversation("message-type", "lm-eval #3270", {**USER, "type": "text"}, ignored="messages[0].type"),
    Row(
        "prompt-for-chat",
        "lm-eval #3125",
        CHAT,
        {"messages": ..., "prompt": "hi"},
        400,
        "missing_required_parameter",
        "messages",
        "messages is missing",
    ),
    Row("health", "guidellm #474", "/health", None, values={"status": "ok"}),
    Row(
        "many-stops",
        "SillyTavern #1844",
        CHAT,
        {"stop": [str(number) for number in range(20)]},
        400,
        "invalid_value",
        "stop",
        "16",
    ),
    Row("sixteen-stops", "SillyTavern #1844", CHAT, {"stop": [f"{number};" for number in range(16)]}),
    conversation(
        "function-call-in-history",
        "vllm #3906",
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        status=400,
        code="unsupported_parameter",
        param="messages[1].function_call",
        has="use tool_calls",
    ),
    Row("effort-none", "LocalAI #10072", CHAT, {"reasoning_effort": "none"}),
    Row("options", "gary #10, obsidian-copilot #233", CHAT, None, method="OPTIONS"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_the_right_answer(client: httpx2.Client, row: Row) -> None:
    check(row, send(client, row))


def test_white_space_in_json_ends(client: httpx2.Client) -> None:
    """vllm #38696, omlx #2990, mellea #1515: the maximum effect of logit_bias is 12 spaces."""
    tokens = {
        token
        for text in (" ", "\n", "\t", "    ", "\n\n", "        ")
        for token in client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    }
    body = {"response_format": {"type": "json_object"}, "logit_bias": dict.fromkeys(map(str, tokens), 100)}
    answer = send(client, Row("", "", CHAT, {**body, "max_tokens": 60})).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert json.loads(answer["message"]["content"]) == {}
    assert answer["message"]["content"].count(" ") <= 12


def test_tools_with_a_stream(client: httpx2.Client) -> None:
    """hass_local_openai_llm #5."""
    body = {"tools": [F], "tool_choice": "required", "max_tokens": 60, "stream": True}
    choices = [chunk["choices"][0] for chunk in stream_events(send(client, Row("", "", CHAT, body)))]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "f"
    assert json.loads("".join(call["function"].get("arguments", "") for call in calls)) == {}
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]


def test_obsidian_s_origin(tmp_path: Path) -> None:
    """obsidian-copilot #2877, #360, osaurus #952: allowed if it is configured, else a 403."""
    page = {"origin": "app://obsidian.md", "x-stainless-os": "MacOS", "x-obsidian": "1"}
    asked = {**page, "access-control-request-method": "POST", "access-control-request-headers": "x-obsidian"}

    def scenario(status: int) -> Any:
        async def run(caller: Caller) -> None:
            preflight = await caller.client.options(CHAT, headers=asked)
            response = await caller.post(CHAT, {"messages": MESSAGES}, **page)
            shown = page["origin"] if status == 200 else None
            for answer in (preflight, response):
                assert answer.headers.get("access-control-allow-origin") == shown
            assert response.status_code == status

        return run

    drive(tmp_path / "allowed", scenario(200), settings=Settings(cors_origin=(page["origin"],)))
    drive(tmp_path / "refused", scenario(403))
