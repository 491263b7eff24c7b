"""Every client error as a table: route, body, and the expected status, code and param.

Errors of chat and completions that need a real model are in tests/e2e/test_openai_routes.py, those of LoRAX's routes
in tests/api/lorax/test_errors.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller
from support.scripted_api import scripted_api

from motet.core.errors import Overloaded, Unavailable

RESPONSES, EMBEDDINGS, BATCHES = "/v1/responses", "/v1/embeddings", "/v1/batches"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    COMPLETIONS: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    EMBEDDINGS: {"input": "hi"},
    BATCHES: {"input_file_id": "file-0", "endpoint": CHAT, "completion_window": "24h"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
GENERATING = (CHAT, COMPLETIONS, RESPONSES)
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Case:
    """A good body with `fields` changed, and what it meets."""

    path: str
    fields: dict[str, Any]
    status: int
    code: str
    param: str | None

    def __str__(self) -> str:
        return f"{self.path}-{json.dumps(self.fields)[:50]}"


def everywhere() -> Iterator[Case]:
    """What is the same on several routes."""
    for path in (*GENERATING, EMBEDDINGS):
        yield Case(path, {"model": "nobody"}, 404, "model_not_found", "model")
        yield Case(path, {"model": "shelf:broken"}, 422, "adapter_refused", "model")
        yield Case(path, {"adapter_id": "shelf:broken"}, 422, "adapter_refused", "adapter_id")
        yield Case(path, {"model": "shelf:secret"}, 403, "permission_denied", "model")
        yield Case(path, {"model": 5}, 400, "invalid_type", "model")
        yield Case(path, {"model": None}, 400, "invalid_type", "model")
        yield Case(path, {"model": "x" * 1025}, 400, "invalid_value", "model")
        yield Case(path, {"model": "one", "adapter_source": "moon"}, 400, "invalid_value", "adapter_source")
    for path in GENERATING:
        yield Case(path, {"temperature": -1}, 400, "invalid_value", "temperature")
        yield Case(path, {"temperature": 2.1}, 400, "invalid_value", "temperature")
        yield Case(path, {"temperature": "hot"}, 400, "invalid_type", "temperature")
        yield Case(path, {"top_p": 1.5}, 400, "invalid_value", "top_p")
        yield Case(path, {"stream": "yes"}, 400, "invalid_type", "stream")
    for path in (CHAT, COMPLETIONS):
        yield Case(path, {"n": 0}, 400, "invalid_value", "n")
        yield Case(path, {"n": -1}, 400, "invalid_value", "n")
        yield Case(path, {"n": 129}, 400, "invalid_value", "n")
        yield Case(path, {"n": 1.5}, 400, "invalid_type", "n")
        yield Case(path, {"max_tokens": 10**6}, 400, "context_length_exceeded", "max_tokens")
        yield Case(path, {"max_tokens": -1}, 400, "invalid_value", "max_tokens")
        yield Case(path, {"stop": ["x"] * 17}, 400, "invalid_value", "stop")
        yield Case(path, {"stop": ""}, 400, "invalid_value", "stop")
        yield Case(path, {"stop": [1]}, 400, "invalid_type", "stop")
        yield Case(path, {"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias")
        yield Case(path, {"logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias")
        yield Case(path, {"logit_bias": {"1": 101}}, 400, "invalid_value", "logit_bias")
        yield Case(path, {"presence_penalty": 3}, 400, "invalid_value", "presence_penalty")
        yield Case(path, {"frequency_penalty": -3}, 400, "invalid_value", "frequency_penalty")
        yield Case(path, {"repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty")
        yield Case(path, {"seed": 2**64}, 400, "invalid_value", "seed")
        yield Case(path, {"min_tokens": 9, "max_tokens": 5}, 400, "invalid_value", "min_tokens")
        yield Case(path, {"typical_p": 0}, 400, "invalid_value", "typical_p")
        yield Case(path, {"priority": 200}, 400, "invalid_value", "priority")
        yield Case(path, {"service_tier": "gold"}, 400, "invalid_value", "service_tier")
        yield Case(path, {"store": True}, 400, "unsupported_parameter", "store")
        yield Case(path, {"truncate_prompt_tokens": 0}, 400, "invalid_value", "truncate_prompt_tokens")
        yield Case(path, {"stream_options": {"include_usage": True}}, 400, "invalid_value", "stream_options")
        yield Case(path, {"response_format": {"type": "haiku"}}, 400, "invalid_value", "response_format.type")
        yield Case(path, {"response_format": {}}, 400, "missing_required_parameter", "response_format.type")
        yield Case(path, {"structured_outputs": {"regex": "a"}}, 400, "unsupported_parameter", "structured_outputs")
        yield Case(path, {"merged_adapters": {"ids": []}}, 400, "invalid_value", "merged_adapters.ids")
        yield Case(
            path,
            {"merged_adapters": {"ids": ["shelf:one"], "merge_strategy": "dare_ties"}},
            400,
            "unsupported_value",
            "merged_adapters.merge_strategy",
        )


CASES = (
    *everywhere(),
    Case(CHAT, {"messages": []}, 400, "invalid_value", "messages"),
    Case(CHAT, {"messages": None}, 400, "invalid_type", "messages"),
    Case(CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    Case(CHAT, {"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content"),
    Case(
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "unsupported_value",
        "messages[0].content[0].type",
    ),
    Case(CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
    Case(CHAT, {"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
    Case(CHAT, {"audio": {"voice": "alloy"}}, 400, "unsupported_parameter", "audio"),
    Case(CHAT, {"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions"),
    Case(CHAT, {"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    Case(CHAT, {"tools": [FUNCTION], "tool_choice": "sometimes"}, 400, "invalid_value", "tool_choice"),
    Case(CHAT, {"tools": [{"type": "web_search"}]}, 400, "invalid_value", "tools[0].type"),
    Case(CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, 400, "invalid_value", "max_tokens"),
    Case(CHAT, {"continue_final_message": True}, 400, "invalid_value", "continue_final_message"),
    Case(COMPLETIONS, {"prompt": None}, 400, "invalid_type", "prompt"),
    Case(COMPLETIONS, {"prompt": [1, "a"]}, 400, "invalid_type", "prompt"),
    Case(COMPLETIONS, {"prompt": [-1]}, 400, "invalid_value", "prompt"),
    Case(COMPLETIONS, {"prompt": "x" * 9000}, 400, "context_length_exceeded", "prompt"),
    Case(COMPLETIONS, {"logprobs": 21}, 400, "invalid_value", "logprobs"),
    Case(COMPLETIONS, {"logprobs": True}, 400, "invalid_type", "logprobs"),
    Case(COMPLETIONS, {"suffix": "x"}, 400, "unsupported_parameter", "suffix"),
    Case(COMPLETIONS, {"best_of": 1, "n": 2}, 400, "invalid_value", "best_of"),
    Case(COMPLETIONS, {"best_of": 2, "stream": True}, 400, "invalid_value", "best_of"),
    Case(COMPLETIONS, {"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    Case(RESPONSES, {"input": 5}, 400, "invalid_type", "input"),
    Case(RESPONSES, {"input": [{"type": "computer_call"}]}, 400, "invalid_value", "input[0].type"),
    Case(RESPONSES, {"previous_response_id": "resp_0"}, 404, "previous_response_not_found", "previous_response_id"),
    Case(RESPONSES, {"conversation": "conv_1"}, 400, "unsupported_parameter", "conversation"),
    Case(RESPONSES, {"max_output_tokens": 0}, 400, "invalid_value", "max_output_tokens"),
    Case(EMBEDDINGS, {"input": []}, 400, "invalid_value", "input"),
    Case(EMBEDDINGS, {"input": ""}, 400, "invalid_value", "input"),
    Case(EMBEDDINGS, {"input": "x" * 9000}, 400, "context_length_exceeded", "input"),
    Case(EMBEDDINGS, {"dimensions": 10**6}, 400, "invalid_value", "dimensions"),
    Case(EMBEDDINGS, {"encoding_format": "int8"}, 400, "invalid_value", "encoding_format"),
    Case(BATCHES, {}, 404, "not_found", "input_file_id"),
    Case(BATCHES, {"endpoint": "/v1/moderations"}, 400, "invalid_value", "endpoint"),
    Case(BATCHES, {"completion_window": "1h"}, 400, "invalid_value", "completion_window"),
    Case("/tokenize", {"prompt": None}, 400, "missing_required_parameter", "prompt"),
    Case("/detokenize", {"tokens": [-1]}, 400, "invalid_value", "tokens"),
)

ABSENT = (
    ("GET", f"{RESPONSES}/resp_0", "response_id"),
    ("DELETE", f"{RESPONSES}/resp_0", "response_id"),
    ("POST", f"{RESPONSES}/resp_0/cancel", "response_id"),
    ("GET", f"{RESPONSES}/resp_0/input_items", "response_id"),
    ("GET", "/v1/files/file-0", "file_id"),
    ("GET", "/v1/files/file-0/content", "file_id"),
    ("DELETE", "/v1/files/file-0", "file_id"),
    ("GET", f"{BATCHES}/batch_0", "batch_id"),
    ("POST", f"{BATCHES}/batch_0/cancel", "batch_id"),
    ("GET", "/v1/models/nobody", "model"),
    ("POST", "/v1/requests/nobody/cancel", "request_id"),
)


async def error_of(response: Any) -> dict[str, Any]:
    """The error object, which has OpenAI's four fields and comes as JSON with an id."""
    assert response.content_type == "application/json"
    assert response.headers["x-request-id"]
    error: dict[str, Any] = json.loads(await response.get_data())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_mistakes_meet_what_the_table_says(tmp_path: Path) -> None:
    """One server for all: none of them hurts the next."""

    async def main() -> list[str]:
        wrong = []
        async with scripted_api(tmp_path) as api:
            caller = Caller(api)
            for case in CASES:
                response = await caller.post(case.path, {**GOOD[case.path], **case.fields})
                error = await error_of(response)
                met = (response.status_code, error["code"], (error["param"] or "").partition("[")[0])
                wanted = (case.status, case.code, (case.param or "").partition("[")[0])
                if met != wanted or error["type"] != "invalid_request_error":
                    wrong.append(f"{case}: {met}, not {wanted}: {error['message']}")
            assert not api.engine.submits, "none of them reached the engine"
        return wrong

    assert asyncio.run(main()) == []


@pytest.mark.parametrize("path", GOOD)
def test_bodies_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            caller = Caller(api)
            for content, kind, status, code in (
                (b"{", "application/json", 400, "invalid_json"),
                (b"\xff", "application/json", 400, "invalid_json"),
                (b"[" * 100_000, "application/json", 400, "invalid_json"),
                (b"[]", "application/json", 400, "invalid_type"),
                (b"{}", "application/json", 400, None),
                (b"{}", "text/plain", 415, "unsupported_media_type"),
                (b'"' + b"x" * (5 << 20) + b'"', "application/json", 413, "payload_too_large"),
            ):
                response = await caller.client.post(path, data=content, headers={"content-type": kind})
                error = await error_of(response)
                assert response.status_code == status
                assert code in (error["code"], None)

    asyncio.run(main())


@pytest.mark.parametrize("path", GOOD)
def test_compressed_bodies_are_refused_by_name(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            headers = {"content-type": "application/json", "content-encoding": "gzip"}
            response = await Caller(api).client.post(path, data=gzip.compress(b"{}"), headers=headers)
            error = await error_of(response)
            assert (response.status_code, error["param"]) == (415, "content-encoding")
            assert "gzip" in error["message"]

    asyncio.run(main())


def test_objects_that_are_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            caller = Caller(api)
            for method, path, param in ABSENT:
                response = await caller.client.open(path, method=method, json={} if method == "POST" else None)
                error = await error_of(response)
                assert (response.status_code, error["param"]) == (404, param), path

    asyncio.run(main())


def test_headers_that_tell_a_client_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            caller = Caller(api)
            for path in GENERATING:
                for failure, status in ((Overloaded("too much waits"), 429), (Unavailable("away"), 503)):
                    api.engine.failure, api.engine.fail_after = failure, 0
                    for stream in (False, True):
                        response = await caller.post(path, {**GOOD[path], "stream": stream})
                        await error_of(response)
                        assert (response.status_code, int(response.headers["retry-after"]) > 0) == (status, True)
            api.engine.fail_after = None
            done = await caller.answer(RESPONSES, {"input": "hi", "background": True})
            while done["status"] not in ("completed", "failed"):
                await asyncio.sleep(0.01)
                done = await (await caller.client.get(f"{RESPONSES}/{done['id']}")).get_json()
            conflict = await caller.client.post(f"{RESPONSES}/{done['id']}/cancel")
            assert (conflict.status_code, conflict.headers["x-should-retry"]) == (409, "false")

    asyncio.run(main())
