"""Requests of known clients that failed according to public reports: each gets the correct answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.api_caller import Caller, drive
from support.request_cases import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Row, check, send

from motet.core.settings import Settings


def function(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


NAMESPACE = {
    "type": "namespace",
    "name": "mcp__town",
    "description": "d",
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
}
WEB_SEARCH = {"type": "web_search"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
TOO_MUCH = "word " * 9000
CALLED = {"choices.0.finish_reason": "tool_calls", "choices.0.message.tool_calls.#": 1}
CALL = "choices.0.message.tool_calls.0.function.name"


def codex_history(slug: str, *items: dict[str, Any], ignored: str | None = None) -> Row:
    history = [{"role": "user", "content": "hi"}, *items, {"role": "user", "content": "go on"}]
    return Row(slug, "openai/codex #5346, llama.cpp #23465", RESPONSES, {"input": history}, ignored=ignored)


CODEX = [
    Row(
        "codex-namespace",
        "openai/codex #23186, #26234, #33263, #36942; vllm #42475, #46737; llama.cpp #20156, #24295, #25193",
        RESPONSES,
        {"tools": [NAMESPACE], "tool_choice": "required", "max_output_tokens": 60},
        values={"output.0.namespace": "mcp__town", "output.0.name": "f", "output.#": 1, "status": "completed"},
    ),
    Row(
        "codex-hosted-tool-left-out",
        "llama.cpp #25193",
        RESPONSES,
        {"tools": [NAMESPACE, WEB_SEARCH], "tool_choice": "auto"},
        ignored="tools[1].web_search",
    ),
    Row(
        "codex-tool-choice-none",
        "openai/codex #26234",
        RESPONSES,
        {"tools": [NAMESPACE, WEB_SEARCH], "tool_choice": "none"},
        ignored="tools[1].web_search",
    ),
    Row(
        "codex-hosted-tool-requested",
        "openai/codex #26234",
        RESPONSES,
        {"tools": [NAMESPACE, WEB_SEARCH], "tool_choice": WEB_SEARCH},
        400,
        "unsupported_value",
        "tool_choice",
        "web_search, a hosted tool",
    ),
    codex_history(
        "codex-custom-tool-call",
        {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "y"},
    ),
    codex_history(
        "codex-local-shell-call",
        {
            "type": "local_shell_call",
            "call_id": "a",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"], "env": {}},
        },
        {"type": "function_call_output", "call_id": "a", "output": "y"},
    ),
    codex_history(
        "codex-web-search-call",
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}},
        ignored="input[1].web_search_call",
    ),
    codex_history(
        "codex-compaction", {"type": "compaction", "encrypted_content": "zzz"}, ignored="input[1].compaction"
    ),
    codex_history("codex-reasoning", {"type": "reasoning", "summary": [], "encrypted_content": None}),
    codex_history(
        "codex-view-image",
        {"type": "function_call", "call_id": "a", "name": "view_image", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": [IMAGE]},
        ignored="input[2].output[0].input_image",
    ),
]

OVERFLOW = "cline #5479, RooCode #6967, OpenHands #7024, zeroclaw #3908, opencode #50574, pi #4574"
SENTENCE = "This model's maximum context length is {} tokens. However, "
CONTEXT = [
    Row(
        f"context-{slug}",
        OVERFLOW,
        path,
        {"temperature": ..., field: [{"role": "user", "content": TOO_MUCH}] if field == "messages" else TOO_MUCH},
        400,
        "context_length_exceeded",
        field,
        SENTENCE.format(limit),
    )
    for slug, path, field, limit in (
        ("chat", CHAT, "messages", 8192),
        ("completions", COMPLETIONS, "prompt", 8192),
        ("responses", RESPONSES, "input", 8192),
        ("embeddings", "/v1/embeddings", "input", 8191),
    )
]
CONTEXT += [
    Row(
        "context-anthropic",
        OVERFLOW,
        "/v1/messages",
        {"messages": [{"role": "user", "content": TOO_MUCH}]},
        400,
        has=SENTENCE.format(8192),
        values={"type": "error", "error.type": "invalid_request_error"},
    ),
    Row(
        "context-qwen-code",
        "JustVugg/colibri #260",
        CHAT,
        {"messages": [{"role": "user", "content": "word " * 890}], "max_tokens": 8000},
        400,
        "context_length_exceeded",
        "max_tokens",
        "max_tokens can be 7271 at most",
    ),
]

HINTED = "lion-reader #1325, semantic-router #96, karakeep #2718"
HINTS = [
    Row("hint-reasoning-effort", HINTED, CHAT, {"reasoning_effort": "low"}, ignored="reasoning_effort"),
    Row("hint-verbosity", HINTED, CHAT, {"verbosity": "low"}, ignored="verbosity"),
    Row("hint-reasoning-object", HINTED, RESPONSES, {"reasoning": {"effort": "low"}}, ignored="reasoning.effort"),
    Row("hint-text-verbosity", "openai-agents", RESPONSES, {"text": {"verbosity": "low"}}, ignored="text.verbosity"),
    Row("hint-effort-none", "LocalAI #10072", CHAT, {"reasoning": {"effort": "none"}}),
]


def refused_field(field: str, value: object, report: str, words: str = "model to name the adapter") -> Row:
    return Row(f"field-{field}", report, CHAT, {field: value}, 400, "unsupported_parameter", field, words)


IDS = "vllm #22587, verifiers #1585, agent-lightning #326, NeMo Gym #11"
FIELDS = [
    refused_field("grammar", 'root ::= "x"', "llama.cpp's GBNF", "in Lark syntax instead of GBNF"),
    refused_field("lora", [{"id": 0, "scale": 0}], "llama.cpp"),
    refused_field("lora_request", {"lora_name": "pirate"}, "vllm"),
    refused_field("format", "json", "Ollama", "response_format"),
    refused_field("extra_body", {"top_k": 1}, "openai-python", "top level of the body"),
    refused_field("nvext", {"top_k": 1}, "Dynamo", "top level of the body"),
    refused_field("n_predict", 4, "llama.cpp", "max_tokens"),
    Row(
        "field-return-token-ids",
        IDS,
        CHAT,
        {"return_token_ids": True, "max_tokens": 3},
        values={"choices.0.token_ids.#": 3, "prompt_token_ids.#": 31},
    ),
    Row(
        "field-return-tokens-as-token-ids",
        IDS,
        COMPLETIONS,
        {"return_tokens_as_token_ids": True, "logprobs": 0},
        has='"tokens":["token_id:',
    ),
]
F, G = function("f"), function("g", x={"type": "integer"})
REPEATED = "vllm #50399, #21026; inference-perf #772; Semantic Kernel 1.45"
CALLS = [
    Row(
        f"required-{slug}",
        REPEATED,
        CHAT,
        {"tools": tools, "tool_choice": "required", **more},
        values={**CALLED, CALL: tools[0]["function"]["name"]},
    )
    for slug, tools, more in (
        ("two-tools", [F, G], {"max_tokens": 400}),
        ("one-tool", [G], {"max_tokens": 400}),
        ("no-parameters", [F], {"max_tokens": 40}),
        ("no-max-tokens", [F], {"max_tokens": ...}),
    )
]


def refused_part(kind: str) -> Row:
    part = {"type": kind, kind: {"url": "data:,x"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    param = "messages[0].content[0].type"
    return Row(f"part-{kind}", "(none)", CHAT, body, 400, "unsupported_value", param, f"'{kind}' parts")


OVERLAP = {"type": "object", "properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}
STRICT = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": OVERLAP}}
ONE_OF = "response_format.json_schema.schema.properties.a.oneOf"
SMALL = [
    Row(
        "base-by-hub-id",
        "vLLM's users",
        CHAT,
        {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        values={"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    ),
    Row("model-unknown", "huggingface_hub", CHAT, {"model": "dummy"}, 404, "model_not_found", "model", "is 'smollm2'"),
    Row(
        "integral-floats",
        "litellm #1854, FastChat #3501, SkyrimNet #40",
        CHAT,
        {"max_tokens": 2.0, "top_k": 3.0, "seed": 1.0, "n": 1.0},
        values={"usage.completion_tokens": 2},
    ),
    Row("other-floats", "litellm #1854", CHAT, {"max_tokens": 2.5}, 400, "invalid_type", "max_tokens", "float"),
    Row(
        "max-tokens-minus-one",
        "lmstudio #1079, langchain #10822",
        CHAT,
        {"max_tokens": -1},
        400,
        "invalid_value",
        "max_tokens",
        "leave it out",
    ),
    Row("top-logprobs-zero", "vLLM's full default body", CHAT, {"logprobs": False, "top_logprobs": 0}),
    Row(
        "part-input-text",
        "llama.cpp #23465",
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
        values={"usage.prompt_tokens": 31},
    ),
    *map(refused_part, ("image_url", "input_audio", "thinking")),
    Row(
        "assistant-null",
        "freellmapi #165, LLMKube #935, browser-use #1635",
        CHAT,
        {"messages": [*MESSAGES, {"role": "assistant", "content": None}, *MESSAGES]},
    ),
    Row(
        "strict-one-of",
        "(none)",
        CHAT,
        {"response_format": STRICT},
        400,
        "invalid_grammar",
        ONE_OF,
        "use anyOf, or leave strict out",
    ),
    Row(
        "chat-render", "vllm", f"{CHAT}/render", {}, 404, "not_offered", None, "POST /tokenize with messages gives the"
    ),
    Row("claude-code", "Claude Code 2.1.197", "/v1/messages", {"model": "pirate"}, values={"type": "message"}),
]


@pytest.mark.parametrize("row", [*CODEX, *CONTEXT, *HINTS, *FIELDS, *CALLS, *SMALL], ids=lambda row: row.slug)
def test_the_right_answer(client: httpx2.Client, row: Row) -> None:
    check(row, send(client, row))


HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize("path", [RESPONSES, "/", CHAT, "/health", "/no/such/route"])
def test_websocket_handshakes_are_answered(server_url: str, path: str) -> None:
    """openai/codex #19821, #10139; coder #26565; codex-lb #1886: a client falls back to HTTP on a 426 only."""

    async def handshake() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(server_url).port)
        writer.write(HANDSHAKE.format(path=path).encode())
        content = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return content

    head, _, body = asyncio.run(handshake()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 ")
    assert json.loads(body)["error"]["code"] == "upgrade_required"


def test_names_of_other_servers_by_alias(tmp_path: Path) -> None:
    """huggingface_hub's InferenceClient sends `dummy`, TGI's users `tgi`, and openai-agents `gpt-5`."""

    async def scenario(caller: Caller) -> None:
        for name in ("dummy", "tgi", "gpt-5"):
            answer = await caller.answer(CHAT, {"model": name, "messages": MESSAGES})
            assert answer["model"] == name

    drive(tmp_path, scenario, settings=Settings(model_alias=("dummy", "tgi", "gpt-5")))


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("http://localhost:*", "http://localhost:5173"),
        ("app://obsidian.md", "app://obsidian.md"),  # obsidian-copilot #2877, #360; osaurus #952
    ],
)
def test_pages_of_allowed_origins(tmp_path: Path, allowed: str, origin: str) -> None:
    async def scenario(caller: Caller) -> None:
        for sent, status in ((origin, 200), ("http://evil.example", 403)):
            response = await caller.post(CHAT, {"messages": MESSAGES}, origin=sent)
            shown = response.headers.get("access-control-allow-origin")
            assert (response.status_code, shown) == (status, sent if status == 200 else None)

    drive(tmp_path, scenario, settings=Settings(cors_origin=(allowed,)))
