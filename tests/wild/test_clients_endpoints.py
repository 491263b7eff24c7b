"""Endpoints that clients request: offered, or refused with an alternative."""

from __future__ import annotations

from importlib.metadata import version

import httpx2
import pytest
from support.request_cases import MESSAGES, Row, check, send


def not_offered(path: str, report: str, words: str, *, method: str = "POST") -> Row:
    slug = path.strip("/").replace("/", "-")
    body = {} if method == "POST" else None
    return Row(f"not-offered-{slug}", report, path, body, 404, "not_offered", None, words, method=method)


ANTHROPIC = "llama.cpp #17570, vllm #21313, lmstudio #1399, mlx-lm #1068, llama-swap #475, NeMo Gym #1384"
LOADING = "aibrix #201, #801, production-stack #205, llm-d-inference-sim #58, ServerlessLLM #221"
OLLAMA = "llama.cpp #12896, exo #2091, ds2api #446, oai2ollama #10, lmstudio #190, llama-swap #200"
TOKENIZER = "vllm #20575, lm-eval #3185, #3017"
RERANK = "vllm #12376, ragflow #4316, sglang #2109, litellm #14937"
CHOICE = {"temperature": ..., "stream": False, "options": {"num_predict": 1}}
ROWS = [
    Row(
        "messages",
        ANTHROPIC,
        "/v1/messages",
        {"system": "Be brief.", "max_tokens": 2},
        values={"type": "message", "role": "assistant", "stop_reason": "max_tokens", "usage.output_tokens": 2},
        headers={"x-api-key": "none", "anthropic-version": "2023-06-01"},
    ),
    Row(
        "messages-unknown-model",
        ANTHROPIC,
        "/v1/messages",
        {"model": "claude-sonnet-4-5"},
        404,
        has="does not exist: the base model is 'smollm2'",
        values={"type": "error", "error.type": "not_found_error"},
    ),
    Row(
        "messages-count-tokens",
        ANTHROPIC,
        "/v1/messages/count_tokens",
        {"messages": MESSAGES, "temperature": ...},
        values={"input_tokens": 31},
    ),
    not_offered("/v1/load_lora_adapter", LOADING, "name the adapter as model"),
    not_offered("/v1/unload_lora_adapter", LOADING, "which is not needed"),
    not_offered("/lora-adapters", "llama.cpp", "merged_adapters", method="GET"),
    Row("ollama-version", OLLAMA, "/api/version", None, has='"version"'),
    Row("ollama-tags", OLLAMA, "/api/tags", None, has='"name":"demo:pirate'),
    Row(
        "ollama-show",
        OLLAMA,
        "/api/show",
        {"model": "smollm2", "temperature": ...},
        has='"general.architecture":"llama"',
        values={"details.family": "llama"},
    ),
    Row(
        "ollama-chat",
        OLLAMA,
        "/api/chat",
        {**CHOICE, "model": "smollm2", "messages": MESSAGES},
        values={"done": True, "eval_count": 1, "message.role": "assistant"},
    ),
    Row(
        "ollama-generate",
        OLLAMA,
        "/api/generate",
        {**CHOICE, "model": "smollm2", "prompt": "hi"},
        values={"done": True, "eval_count": 1},
    ),
    Row(
        "tokenizer-info",
        TOKENIZER,
        "/tokenizer_info",
        None,
        values={"eos_token": "<|im_end|>", "model_max_length": 8192},
    ),
    not_offered("/v1/rerank", RERANK, "POST /v1/embeddings"),
    not_offered("/rerank", RERANK, "POST /v1/embeddings"),
    not_offered("/score", RERANK, "POST /v1/embeddings"),
    *(
        Row(f"probe-{path.strip('/').replace('/', '-')}", "llama.cpp", path, None, values={"status": "ok"})
        for path in ("/v1/health", "/healthz", "/livez", "/live", "/ready")
    ),
    Row("version", "vllm", "/version", None, values={"version": version("motet")}),
    not_offered("/props", "llama.cpp", "GET /info", method="GET"),
    not_offered("/v1/audio/speech", "openai", "audio"),
    not_offered("/v1/conversations", "openai", "previous_response_id"),
    not_offered("/v1/chat/completions", "openai", "stored chat completions", method="GET"),
    Row("docs", "a path prefix of a proxy", "/docs", None, has='"openapi.json"'),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_the_right_answer(client: httpx2.Client, row: Row) -> None:
    check(row, send(client, row))
