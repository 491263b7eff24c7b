"""OpenAI's and Ollama's routes that are not offered, and misspelled paths: each has a helpful 404."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.api_caller import CHAT, Caller, drive


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("POST", "/v1/moderations", "moderation"),
        ("POST", "/v1/images/generations", "images"),
        ("POST", "/v1/audio/speech", "audio"),
        ("GET", "/v1/vector_stores", "vector stores"),
        ("GET", CHAT, "stored chat completions"),
        ("DELETE", f"{CHAT}/chatcmpl-1", "stored chat completions"),
        ("POST", "/v1/responses/compact", "compaction"),
        ("POST", f"{CHAT}/render", "POST /tokenize with messages"),
        ("POST", "/v1/messages/batches", "POST /v1/batches"),
        ("POST", "/v1/rerank", "POST /v1/embeddings"),
        ("POST", "/score", "POST /v1/embeddings"),
        ("POST", "/v1/load_lora_adapter", "name the adapter as model"),
        ("POST", "/v1/unload_lora_adapter", "which is not needed"),
        ("GET", "/lora-adapters", "merged_adapters"),
        ("GET", "/props", "GET /info"),
        ("GET", "/slots", "GET /health"),
        ("POST", "/infill", "suffix"),
        ("POST", "/pooling", "POST /v1/embeddings"),
    ],
)
def test_what_is_not_offered_says_so(tmp_path: Path, method: str, path: str, what: str) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.client.open(path, method=method, json={})
        body = await response.get_json()
        error = body["error"]
        if path.startswith("/v1/messages"):
            assert (response.status_code, body["type"], error["type"]) == (404, "error", "not_found_error")
        else:
            assert (response.status_code, error["code"], error["type"]) == (404, "not_offered", "invalid_request_error")
        assert what in error["message"]

    drive(tmp_path, scenario)


def test_what_ollama_has_and_is_not_offered_says_so_in_its_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path, what in (("/api/pull", "GET /api/tags"), ("/api/embed", "POST /v1/embeddings")):
            response = await caller.client.post(path, json={})
            body = await response.get_json()
            assert (response.status_code, set(body)) == (404, {"error"})
            assert what in body["error"]

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", CHAT),
        ("POST", "/v1/v1/chat/completions", CHAT),
        ("POST", f"{CHAT}/", CHAT),
        ("POST", f"{CHAT}/chat/completions", CHAT),
        ("POST", "/openai/v1/embeddings", "/v1/embeddings"),
        ("POST", "/v1/engines/ada/completions", "/v1/completions"),
        ("GET", "/v1/models/", "/v1/models"),
        ("GET", "/models/org/name", "/v1/models/org/name"),
        ("GET", "/docs/", "/docs"),
        ("GET", "/health/", "/health"),
    ],
)
def test_a_mistyped_path_gets_a_hint(tmp_path: Path, method: str, path: str, meant: str) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.client.open(path, method=method, json={} if method == "POST" else None)
        error = (await response.get_json())["error"]
        assert (response.status_code, error["code"]) == (404, "not_found")
        assert f"did you mean {meant}" in error["message"]
        assert ("base URL" in error["message"]) == meant.startswith("/v1/")

    drive(tmp_path, scenario)


@pytest.mark.parametrize("path", ["/nothing", "/images/generations", "/chat" * 40 + CHAT, "/a" * 9 + CHAT])
def test_nothing_is_guessed_where_nothing_is_near(tmp_path: Path, path: str) -> None:
    async def scenario(caller: Caller) -> None:
        error = (await (await caller.client.post(path)).get_json())["error"]
        assert error["message"] == "no such route; GET /docs lists them"

    drive(tmp_path, scenario)


def test_other_paths_and_methods(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        missing = await caller.client.get("/v1/nothing/here")
        assert (missing.status_code, (await missing.get_json())["error"]["code"]) == (404, "not_found")
        wrong = await caller.client.delete("/v1/completions")
        assert (wrong.status_code, (await wrong.get_json())["error"]["code"]) == (405, "method_not_allowed")
        assert "POST" in wrong.headers["allow"]
        assert "accepts only POST" in (await wrong.get_json())["error"]["message"]

    drive(tmp_path, scenario)
