"""Chat, completions and models on the scripted engine: adapters, formats, headers and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive

from motet.core.sampling_params import choice_seed
from motet.core.settings import Settings


def test_choices_are_numbered_by_prompt_and_seeded_by_choice(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: request.id.rpartition("-")[2]
        answer = await caller.answer(COMPLETIONS, {"prompt": ["a", "bc"], "n": 2, "seed": 5})
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            (0, "0"),
            (1, "1"),
            (2, "2"),
            (3, "3"),
        ]
        assert answer["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 8,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
        submits = sorted(caller.api.engine.submits, key=lambda submit: submit.id)
        assert [len(submit.prompt) for submit in submits] == [1, 1, 2, 2]
        assert [submit.params.seed for submit in submits] == [5, choice_seed(5, 1)] * 2
        assert len({submit.id for submit in submits}) == 4

    drive(tmp_path, scenario)


def test_an_adapter_is_named_to_the_engine_with_its_own_eos(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await caller.answer(COMPLETIONS, {"model": "one", "prompt": "a"})
        assert answer["model"] == "one"
        submit = caller.api.engine.submits[-1]
        assert submit.adapter == "print-of-one"
        assert [adapter.id for adapter in caller.api.engine.registered] == ["one"]
        assert set(submit.params.eos_token_ids) == {7, *caller.api.services.tokenizer.eos_token_ids}
        await caller.answer(COMPLETIONS, {"model": "tiny", "prompt": "a"})
        assert caller.api.engine.submits[-1].adapter is None
        await caller.answer(COMPLETIONS, {"model": "two", "adapter_source": "shelf", "prompt": "a"})
        assert caller.api.engine.submits[-1].adapter == "print-of-two"

    drive(tmp_path, scenario)


def test_adapters_fail_with_their_own_statuses_before_a_stream_opens(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for stream in (False, True):
            for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "a"})):
                body = {**body, "stream": stream}
                assert await caller.error(path, {**body, "model": "nope"}) == (404, "model_not_found", "model")
                assert (await caller.error(path, {**body, "model": "shelf:secret"}))[0] == 403
                assert (await caller.error(path, {**body, "model": "shelf:broken"}))[0] == 422
                status, _, param = await caller.error(path, {**body, "model": "x", "adapter_source": "moon"})
                assert (status, param) == (400, "adapter_source")
        assert not caller.api.engine.submits

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("source", "body", "headers", "wanted"),
    [
        ("hub", {"api_token": "hf_good"}, {"x-adapter-token": "bad", "authorization": "Bearer hf_bad"}, "hf_good"),
        ("hub", {}, {"x-adapter-token": "hf_good", "authorization": "Bearer hf_bad"}, "hf_good"),
        ("hub", {}, {"authorization": "Bearer hf_good"}, "hf_good"),
        ("hub", {}, {"authorization": "Bearer sk-something"}, None),
        ("hub", {}, {"authorization": "Basic hf_good"}, None),
        ("hub", {"api_token": ""}, {}, None),
        ("shelf", {"api_token": "hf_good"}, {}, "hf_good"),
        ("shelf", {}, {"x-adapter-token": "hf_good"}, "hf_good"),
        ("shelf", {}, {"authorization": "Bearer hf_good"}, None),
    ],
)
def test_whose_token_the_source_sees(
    tmp_path: Path, source: str, body: dict[str, str], headers: dict[str, str], wanted: str | None
) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.post(COMPLETIONS, {"model": f"{source}:secret", "prompt": "a", **body}, **headers)
        assert caller.api.shelf.tokens == [wanted]
        assert response.status_code == (200 if wanted == "hf_good" else 403)
        assert b"hf_good" not in await response.get_data()
        card = await caller.client.get(f"/v1/models/{source}:secret", headers=headers)
        sent = caller.api.shelf.tokens[-1]
        assert sent == (wanted if not body.get("api_token") else "bad" if headers else None)
        assert card.status_code == (200 if sent == "hf_good" else 403)

    drive(tmp_path, scenario)


def test_output_formats(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": {"type": "text"}})
        assert caller.api.engine.submits[-1].grammar is None
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}})
        grammar = caller.api.engine.submits[-1].grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        bad = [
            ({}, "missing_required_parameter", "response_format.type"),
            ({"type": 3}, "invalid_type", "response_format.type"),
            ({"type": "haiku"}, "invalid_value", "response_format.type"),
            ({"type": "json_object", "schema": {"type": "objekt"}}, "invalid_grammar", "response_format.schema.type"),
            (
                {"type": "json_object", "schema": {"$ref": "http://x/y"}},
                "invalid_grammar",
                "response_format.schema.$ref",
            ),
        ]
        for response_format, code, param in bad:
            found = await caller.error(CHAT, {"messages": MESSAGES, "response_format": response_format, "stream": True})
            assert found == (400, code, param)

    drive(tmp_path, scenario)


def test_models_by_every_name(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        listed = (await (await caller.client.get("/v1/models")).get_json())["data"]
        assert [(card["id"], card["alias"], card["parent"]) for card in listed] == [
            ("tiny", None, None),
            ("shelf:one", "one", "tiny"),
            ("shelf:two", None, "tiny"),
        ]
        names = {
            "tiny": "tiny",
            "one": "shelf:one",
            "shelf:one": "shelf:one",
            "shelf%3Aone": "shelf:one",
            "org/name": "shelf:org/name",
            "org%2Fname": "shelf:org/name",
            "shelf:org%2Fname%40main": "shelf:org/name@main",
        }
        for name, wanted in names.items():
            response = await caller.client.get(f"/v1/models/{name}")
            assert (response.status_code, (await response.get_json())["id"]) == (200, wanted)
        for name, status in {"shelf:zzz": 404, "zzz": 404, "shelf:secret": 403, "a//b": 404}.items():
            response = await caller.client.get(f"/v1/models/{name}")
            assert response.status_code == status
            assert (await response.get_json())["error"]["param"] == "model"

    drive(tmp_path, scenario)


def test_every_answer_has_a_request_id(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path in ("/health", "/nope", "/v1/models/zzz"):
            own = await caller.client.get(path, headers={"x-request-id": "my-id.1"})
            assert own.headers["x-request-id"] == "my-id.1"
            for strange in ("", "a b", "x" * 200, "ü"):
                other = await caller.client.get(path, headers={"x-request-id": strange})
                assert other.headers["x-request-id"].startswith("req_")
        stream = await caller.post(CHAT, {"messages": MESSAGES, "stream": True}, **{"x-request-id": "s"})
        assert stream.headers["x-request-id"] == "s"

    drive(tmp_path, scenario)


def test_the_frameworks_errors_have_the_same_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert (await (await caller.client.get("/nope")).get_json())["error"]["code"] == "not_found"
        wrong_method = await caller.client.get(COMPLETIONS)
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "OPTIONS, POST")
        assert (await wrong_method.get_json())["error"]["code"] == "method_not_allowed"
        assert (await caller.error(COMPLETIONS, {"prompt": "x" * 2000}))[:2] == (413, "payload_too_large")
        form = await caller.client.post(COMPLETIONS, form={"prompt": "x"})
        assert (form.status_code, (await form.get_json())["error"]["code"]) == (415, "unsupported_media_type")

    drive(tmp_path, scenario, settings=Settings(max_body="1KB"))


def test_ignored_fields_are_listed(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for stream in (False, True):
            response = await caller.post(COMPLETIONS, {"prompt": "a", "prediction": {}, "a\r\nb": 1, "stream": stream})
            assert response.status_code == 200
            assert response.headers["x-motet-ignored"] == "prediction,a%0D%0Ab"
        plain = await caller.post(COMPLETIONS, {"prompt": "a"})
        assert "x-motet-ignored" not in plain.headers

    drive(tmp_path, scenario)


def test_what_is_echoed_is_short(tmp_path: Path) -> None:
    long = "x" * 100_000
    cases = [
        {"messages": [{"role": long, "content": "x"}]},
        {"messages": MESSAGES, "model": long[:500]},
        {"messages": MESSAGES, "model": "m", "adapter_source": long},
        {"messages": MESSAGES, "response_format": {"type": "json_object", "schema": {"type": long[:60_000]}}},
        {"messages": MESSAGES, "logit_bias": {long: 1}},
    ]

    async def scenario(caller: Caller) -> None:
        for body in cases:
            response = await caller.post(CHAT, body)
            assert 400 <= response.status_code < 500
            assert len(await response.get_data()) < 1000, body.keys()

    drive(tmp_path, scenario)


def test_logprobs_of_whole_answers(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        body = {"messages": MESSAGES, "n": 2, "logprobs": True, "top_logprobs": 2}
        for choice in (await caller.answer(CHAT, body))["choices"]:
            content = choice["logprobs"]["content"]
            assert "".join(entry["token"] for entry in content) == choice["message"]["content"] == "Hello!"
            assert {len(entry["top_logprobs"]) for entry in content} == {2}
        for choice in (await caller.answer(COMPLETIONS, {"prompt": ["a", "b"], "logprobs": 1}))["choices"]:
            assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == "Hello!"
            assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5]
            assert all(
                entry == {token: -0.5}
                for entry, token in zip(choice["logprobs"]["top_logprobs"], choice["logprobs"]["tokens"], strict=True)
            )
        assert (await caller.answer(CHAT, {"messages": MESSAGES}))["choices"][0]["logprobs"] is None

    drive(tmp_path, scenario)
