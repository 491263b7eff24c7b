"""Failures of LoRAX's routes: statuses and bodies, before a stream and in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import Caller, drive
from support.lorax_calls import PATHS, body, events, post

from motet.core.errors import AdapterRefused, Overloaded, Unavailable


@pytest.mark.parametrize(
    ("parameters", "status", "kind", "words"),
    [
        ({"top_p": 0}, 422, "validation", "top_p"),
        ({"temperature": "hot"}, 422, "validation", "temperature"),
        ({"seed": 2**64}, 422, "validation", "seed"),
        ({"max_new_tokens": 0}, 422, "validation", "max_new_tokens"),
        ({"max_new_tokens": 10**6}, 422, "validation", "max_new_tokens"),
        ({"watermark": True}, 422, "validation", "watermark"),
        ({"best_of": 2}, 422, "validation", "sampling"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, 422, "validation", "seed"),
        ({"return_k_alternatives": 21}, 422, "validation", "return_k_alternatives"),
        ({"response_format": {"type": "poem"}}, 422, "validation", "response_format"),
        ({"adapter_source": "nowhere", "adapter_id": "one"}, 422, "validation", "adapter_source"),
        ({"adapter_id": "one", "merged_adapters": {"ids": ["two"]}}, 422, "validation", "merged_adapters"),
        ({"merged_adapters": {"ids": ["one"], "merge_strategy": "ties"}}, 422, "validation", "only linear"),
        ({"merged_adapters": {"ids": ["one", "two"], "weights": [1]}}, 422, "validation", "weights"),
        ({"adapter_id": "shelf:nobody"}, 424, "generation", "nobody"),
        ({"adapter_id": "shelf:broken"}, 424, "generation", ": adapter_id: adapter_config.json: use_qalora"),
        ({"adapter_id": "shelf:secret"}, 424, "generation", "secret"),
    ],
)
def test_mistakes_have_lorax_shape_on_every_route_and_before_a_stream(
    tmp_path: Path, parameters: dict[str, Any], status: int, kind: str, words: str
) -> None:
    async def scenario(caller: Caller) -> None:
        for path in PATHS:
            got, answer, _ = await post(caller, path, {**body(**parameters), "stream": path == "/"})
            assert set(answer) == {"error", "error_type"}
            if "best_of" not in parameters or path in ("/generate", "/invocations"):
                assert (got, answer["error_type"]) == (status, kind), answer
                assert words in answer["error"]
            assert got == status

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "application/json", 422),
        (b'{"inputs": ""}', "application/json", 422),
        (b'{"inputs": "hi"}', "text/plain", 415),
        (b'{"inputs": "' + b"x" * (5 << 20) + b'"}', "application/json", 413),
    ],
)
def test_bodies_that_cannot_be_read(tmp_path: Path, content: bytes, kind: str, status: int) -> None:
    async def scenario(caller: Caller) -> None:
        for path in (*PATHS, "/embed"):
            response = await caller.client.post(path, data=content, headers={"content-type": kind})
            answer = json.loads(await response.get_data())
            assert (response.status_code, answer["error_type"]) == (status, "validation")
            assert set(answer) == {"error", "error_type"}

    drive(tmp_path, scenario)


def test_errors_name_fields_as_the_caller_knows_them(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async def message_of(path: str, sent: dict[str, Any]) -> str:
            status, answer, _ = await post(caller, path, sent)
            assert status == 422
            return str(answer["error"]).removeprefix("Input validation error: ")

        many = {"best_of": 60, "do_sample": True, "details": True, "return_k_alternatives": 20}
        message = await message_of("/generate", body(**many, decoder_input_details=True))
        assert message.startswith("return_k_alternatives: up to 122880 tokens with 21 logprobs each")
        assert message.endswith("lower max_new_tokens or best_of, or leave decoder_input_details out")
        assert (await message_of("/generate", body("x" * 5000))).startswith(
            "inputs: This model's maximum context length is 2048 tokens. However, "
        )
        assert (await message_of("/embed", body("x" * 5000))).startswith("inputs: ")
        assert (await message_of("/tokenize", {"inputs": "x", "truncate_prompt_tokens": "y"})).startswith(
            "truncate_prompt_tokens: "
        )

    drive(tmp_path, scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_streamed(tmp_path: Path, stream: bool) -> None:
    async def scenario(caller: Caller) -> None:
        for parameters in ({"best_of": 2, "do_sample": True}, {"decoder_input_details": True, "details": True}):
            status, answer, _ = await (
                post(caller, "/generate_stream", body(**parameters)) if stream else post(caller, "/generate", body())
            )
            assert status == (422 if stream else 200), answer

    drive(tmp_path, scenario)


def test_the_engines_failures(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        engine = caller.api.engine
        for failure, status, kind in (
            (Overloaded("too much waits"), 429, "overloaded"),
            (Unavailable("the engine is away"), 503, "generation"),
            (AdapterRefused("no room", param="model"), 424, "generation"),
            (ValueError("a fault"), 500, "generation"),
        ):
            engine.failure, engine.fail_after = failure, 0
            for path in ("/generate", "/generate_stream"):
                got, answer, headers = await post(caller, path, body())
                assert (got, answer["error_type"]) == (status, kind)
                assert "a fault" not in answer["error"]
                assert ("retry-after" in headers) == (status in (429, 503))
            engine.fail_after = 2
            streamed = await events(caller, body())
            assert (set(streamed[-1]), streamed[-1]["error_type"]) == ({"error", "error_type"}, kind)
            assert [event["token"]["text"] for event in streamed[:-1]] == ["H", "e"]

    drive(tmp_path, scenario)


def test_a_method_that_a_route_does_not_take_has_lorax_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path, method in (("/generate", "GET"), ("/embed", "DELETE"), ("/info", "POST"), ("/", "DELETE")):
            response = await caller.client.open(path, method=method)
            answer = json.loads(await response.get_data())
            assert (response.status_code, set(answer)) == (405, {"error", "error_type"})
            assert response.headers["allow"]
        response = await caller.client.get("/v1/completions")
        assert set((await response.get_json())["error"]) == {"message", "type", "param", "code"}

    drive(tmp_path, scenario)
