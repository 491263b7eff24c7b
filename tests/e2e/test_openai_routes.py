"""A whole server over HTTP: statuses, error objects and streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server_url, timeout=120) as client:
        yield client


def post(client: httpx2.Client, path: str, **body: Any) -> httpx2.Response:
    default = {"messages": MESSAGES} if path == CHAT else {"prompt": "The sea"}
    return client.post(path, json={"model": "", "temperature": 0, "max_tokens": 8, **default, **body})


def frames(content: bytes) -> list[Any]:
    """The events of a stream. Each must be exactly `data: ...` and an empty line; [DONE] is a string."""
    assert content.endswith(b"data: [DONE]\n\n")
    lines = content.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [*(json.loads(line[6:]) for line in lines[:-1]), "[DONE]"]


BAD = [
    (CHAT, {"model": None}, 400, "invalid_type", "model"),
    (CHAT, {"messages": []}, 400, "invalid_value", "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    (CHAT, {"temperature": 3}, 400, "invalid_value", "temperature"),
    (CHAT, {"temperature": "hot"}, 400, "invalid_type", "temperature"),
    (CHAT, {"n": 0}, 400, "invalid_value", "n"),
    (CHAT, {"max_tokens": 10**6}, 400, "context_length_exceeded", "max_tokens"),
    (
        CHAT,
        {"max_tokens": None, "max_completion_tokens": 10**6},
        400,
        "context_length_exceeded",
        "max_completion_tokens",
    ),
    (CHAT, {"logit_bias": {"999999": 1}}, 400, "invalid_value", "logit_bias"),
    (CHAT, {"stop_token_ids": [999_999]}, 400, "invalid_value", "stop_token_ids[0]"),
    (CHAT, {"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions"),
    (CHAT, {"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    (CHAT, {"modalities": ["audio"]}, 400, "unsupported_parameter", "modalities"),
    (CHAT, {"response_format": {"type": "haiku"}}, 400, "invalid_value", "response_format.type"),
    (
        CHAT,
        {"response_format": {"type": "json_object", "schema": {"type": "objekt"}}},
        400,
        "invalid_grammar",
        "response_format.schema.type",
    ),
    (CHAT, {"model": "no-such-adapter"}, 404, "model_not_found", "model"),
    (CHAT, {"model": "demo:no-such-adapter"}, 404, "model_not_found", "model"),
    (CHAT, {"model": "demo:../../etc"}, 404, "model_not_found", "model"),
    (CHAT, {"adapter_source": "moon", "model": "x"}, 400, "invalid_value", "adapter_source"),
    (COMPLETIONS, {"prompt": []}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, {"prompt": ""}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, {"prompt": [10**6]}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, {"prompt": ["a", 1]}, 400, "invalid_type", "prompt"),
    (COMPLETIONS, {"prompt": "word " * 20_000}, 400, "context_length_exceeded", "prompt"),
    (COMPLETIONS, {"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    (COMPLETIONS, {"suffix": "x"}, 400, "unsupported_parameter", "suffix"),
    (COMPLETIONS, {"best_of": 2, "n": 3}, 400, "invalid_value", "best_of"),
    (COMPLETIONS, {"model": "nope"}, 404, "model_not_found", "model"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mistake", BAD, ids=lambda mistake: str(mistake[1])[:40])
def test_mistakes_are_refused_before_a_stream_opens(
    client: httpx2.Client, mistake: tuple[str, dict[str, Any], int, str, str], stream: bool
) -> None:
    path, body, status, code, param = mistake
    response = post(client, path, **body, stream=stream)
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]


JSON = {"content-type": "application/json"}
OUTER: list[tuple[str, str, bytes, dict[str, str], int, str]] = [
    ("POST", CHAT, b"{", JSON, 400, "invalid_json"),
    ("POST", CHAT, b"[]", JSON, 400, "invalid_type"),
    ("POST", CHAT, b'{"temperature": NaN}', JSON, 400, "invalid_json"),
    ("POST", CHAT, b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ("POST", CHAT, b"{}", {}, 415, "unsupported_media_type"),
    ("POST", CHAT, b'"' + b"x" * (5 << 20) + b'"', JSON, 413, "payload_too_large"),
    ("GET", CHAT, b"", {}, 404, "not_offered"),
    ("PUT", CHAT, b"", {}, 405, "method_not_allowed"),
    ("DELETE", "/v1/models", b"", {}, 405, "method_not_allowed"),
    ("GET", "/v1/nothing", b"", {}, 404, "not_found"),
    ("GET", "/v1/models/nothing", b"", {}, 404, "model_not_found"),
]


@pytest.mark.parametrize("mistake", OUTER, ids=lambda mistake: f"{mistake[0]}-{mistake[1]}-{mistake[-1]}")
def test_the_outer_errors_have_the_same_shape(
    client: httpx2.Client, mistake: tuple[str, str, bytes, dict[str, str], int, str]
) -> None:
    method, path, content, headers, status, code = mistake
    response = client.request(method, path, content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_chat_stream(client: httpx2.Client, n: int, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    response = post(client, CHAT, stream=True, n=n, **options)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, _ = frames(response.content)
    assert len({(c["id"], c["object"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["id"].startswith("chatcmpl-")
    for index, chunk in enumerate(chunks[:n]):
        [choice] = chunk["choices"]
        assert choice == {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    last = chunks.pop() if usage else None
    for index in range(n):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert [choice["delta"].get("role") for choice in own] == ["assistant", *[None] * (len(own) - 1)]
        assert [choice["finish_reason"] for choice in own] == [*[None] * (len(own) - 1), "length"]
        assert own[-1]["delta"] == {}
    if last is not None:
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 8 * n
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)


def test_a_chat_stream_equals_the_whole_answer(client: httpx2.Client) -> None:
    whole = post(client, CHAT, max_tokens=24).json()
    *chunks, _ = frames(post(client, CHAT, max_tokens=24, stream=True).content)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    facts = {"id", "object", "created", "model", "system_fingerprint", "service_tier"}
    assert set(whole) == {*facts, "choices", "usage"}
    assert set(whole["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}


def test_a_completion_stream_equals_the_whole_answer(client: httpx2.Client) -> None:
    prompts = ["The sea", "A ship"]
    whole = post(client, COMPLETIONS, prompt=prompts, n=2).json()
    *chunks, _ = frames(
        post(client, COMPLETIONS, prompt=prompts, n=2, stream=True, stream_options={"include_usage": True}).content
    )
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[0]["object"] == whole["object"] == "text_completion"
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own] == [*[None] * (len(own) - 1), choice["finish_reason"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]


def test_a_list_of_prompts_is_answered_like_single_prompts(client: httpx2.Client) -> None:
    prompts = ["The sea", "A ship on the horizon"]
    together = post(client, COMPLETIONS, prompt=prompts).json()["choices"]
    alone = [post(client, COMPLETIONS, prompt=prompt).json()["choices"][0]["text"] for prompt in prompts]
    assert [choice["text"] for choice in together] == alone


def test_responses_have_their_headers(client: httpx2.Client) -> None:
    body = {"model": "", "prompt": "x", "max_tokens": 1, "prediction": {}, "frobnicate": 1}
    response = client.post(COMPLETIONS, json=body, headers={"x-request-id": "abc.1"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "abc.1"
    assert response.headers["x-motet-ignored"] == "prediction,frobnicate"


def test_health_docs_and_the_document(client: httpx2.Client) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/docs").text.startswith("<!doctype html>")
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    name = client.get("/v1/models").json()["data"][0]["id"]
    for path, operations in document["paths"].items():
        if "get" in operations and (path := path.replace("{model}", name)).count("{") == 0:
            assert client.get(path).status_code == 200, path
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        example = content.get("application/json", {}).get("example")
        if example and path != "/v1/batches":  # whose file is made up
            assert client.post(path, json=example).status_code == 200, path
