"""LoRAX's routes on the scripted engine: shapes, parameters and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import Caller, drive, prompt_of
from support.lorax_calls import PATHS, body, events, post
from support.scripted_api import CONTEXT


def params(caller: Caller) -> Any:
    return caller.api.engine.submits[-1].params


def test_the_shapes_of_whole_answers(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "Hé"
        status, answer, headers = await post(caller, "/generate", body())
        assert (status, answer) == (200, {"generated_text": "Hé"})
        counts = {name: headers[f"x-{name}-tokens"] for name in ("prompt", "generated", "skipped", "total")}
        assert counts == {"prompt": "2", "generated": "4", "skipped": "0", "total": "6"}
        for name in ("compute", "total", "validation", "queue", "inference"):
            assert int(headers[f"x-{name}-time"]) >= 0
        for name in ("per-token", "to-first-token", "per-output-token"):
            assert int(headers[f"x-time-{name}"]) >= 0
        assert (headers["x-model-id"], headers["x-compute-type"]) == ("tiny", "cpu")
        for path in PATHS:
            response = await caller.client.post(path, json=body("hé!"))
            assert response.headers["x-compute-characters"] == "3"
        assert "x-adapter-id" not in headers
        for path in ("/", "/invocations"):
            assert (await post(caller, path, body()))[1] == [{"generated_text": "Hé"}]
        _, answer, _ = await post(caller, "/generate", body(details=True, decoder_input_details=True))
        details = answer["details"]
        assert set(answer) == {"generated_text", "details"}
        assert details | {"tokens": 0, "prefill": 0} == {
            "finish_reason": "eos_token",
            "prompt_tokens": 2,
            "generated_tokens": 4,
            "skipped_tokens": 0,
            "seed": None,
            "prefill": 0,
            "tokens": 0,
        }
        assert details["prefill"] == [
            {"id": ord("h") - 33, "text": "h", "logprob": None},
            {"id": ord("i") - 33, "text": "i", "logprob": -0.25},
        ]
        assert [token["text"] for token in details["tokens"]] == ["H", "", "é", ""]
        assert [token["special"] for token in details["tokens"]] == [False, False, False, True]
        assert set(details["tokens"][0]) == {"id", "text", "logprob", "special", "skipped"}

    drive(tmp_path, scenario)


def test_the_shapes_of_streams(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "Hé!"
        for path in PATHS:
            if path == "/generate":
                continue
            sent = {**body(details=True, do_sample=True, seed=5), "stream": True}
            *firsts, last = await events(caller, sent, path)
            assert [event["token"]["text"] for event in firsts] == ["H", "", "é", "!"]
            assert all(event["generated_text"] is None and event["details"] is None for event in firsts)
            assert last["generated_text"] == "Hé!"
            assert last["token"]["special"] is True
            assert last["details"] == {
                "finish_reason": "eos_token",
                "prompt_tokens": 2,
                "generated_tokens": 5,
                "seed": 5,
            }
        last = (await events(caller, body(return_full_text=True)))[-1]
        assert (last["generated_text"], last["details"]) == ("hiHé!", None)

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"temperature": 0.0}),
        ({"do_sample": False, "repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
        ({"do_sample": True}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0}),
        ({"do_sample": True, "temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"top_k": 3}, {"temperature": 1.0, "top_k": 3}),
        ({"top_p": 0.5, "typical_p": 0.4}, {"temperature": 1.0, "top_p": 0.5, "typical_p": 0.4}),
        ({"max_new_tokens": 3}, {"max_tokens": 3}),
        ({"max_new_tokens": None}, {"max_tokens": CONTEXT - 2}),
        ({"ignore_eos_token": True}, {"ignore_eos": True}),
        ({"seed": 2**62, "do_sample": True}, {"seed": 2**62}),
        ({"seed": 2**64 - 1, "do_sample": True}, {"seed": 2**63 - 1}),
        ({"frequency_penalty": 1, "presence_penalty": -1}, {"frequency_penalty": 1, "presence_penalty": -1}),
        ({"return_k_alternatives": 2, "details": True}, {"logprobs": 2}),
        ({"watermark": False, "stop": [], "response_format": None, "adapter_source": "shelf"}, {}),
    ],
)
def test_parameters_mean_what_they_mean_to_lorax(
    tmp_path: Path, parameters: dict[str, Any], expected: dict[str, Any]
) -> None:
    async def scenario(caller: Caller) -> None:
        status, answer, _ = await post(caller, "/generate", body(**parameters))
        assert status == 200, answer
        sent = params(caller)
        assert {name: getattr(sent, name) for name in expected} == expected

    drive(tmp_path, scenario)


def test_finish_reasons_are_distinct_and_stop_strings_are_not_shown(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "one two three"
        for parameters, text, reason in (
            ({"stop": ["wo t"]}, "one t", "stop_sequence"),
            ({"max_new_tokens": 4}, "one ", "length"),
            ({}, "one two three", "eos_token"),
        ):
            _, answer, _ = await post(caller, "/generate", body(details=True, **parameters))
            assert (answer["generated_text"], answer["details"]["finish_reason"]) == (text, reason)
            assert "".join(token["text"] for token in answer["details"]["tokens"]) == text
            streamed = await events(caller, body(**parameters))
            assert "".join(event["token"]["text"] for event in streamed) == text
            assert streamed[-1]["generated_text"] == text

    drive(tmp_path, scenario)


def test_alternatives_and_several_answers(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: f"answer {request.id[-1]}"
        sent = body(details=True, best_of=3, do_sample=True, return_k_alternatives=2)
        _, answer, _ = await post(caller, "/generate", sent)
        details = answer["details"]
        others = details["best_of_sequences"]
        texts = [answer["generated_text"], *(other["generated_text"] for other in others)]
        assert sorted(texts) == ["answer 0", "answer 1", "answer 2"]
        seeds = {details["seed"], *(other["seed"] for other in others)}
        assert len(seeds) == 3
        assert all(0 <= seed < 2**63 for seed in seeds), "each can be sent back"
        assert len(details["tokens"][0]["alternative_tokens"]) == 2
        assert set(details["tokens"][0]["alternative_tokens"][0]) == {"id", "text", "logprob"}

    drive(tmp_path, scenario)


def test_prompts_are_cut_and_templates_applied(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await post(caller, "/generate", body("abcdef", truncate=3))
        assert prompt_of(caller) == "def"
        _, answer, _ = await post(caller, "/generate", body("abcdef", truncate=3, return_full_text=True))
        assert answer["generated_text"] == "abcdefHello!"
        asked = body("hi", apply_chat_template=True, return_full_text=True)
        assert (await post(caller, "/generate", asked))[1]["generated_text"] == "hiHello!"
        assert prompt_of(caller) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    drive(tmp_path, scenario)


def test_adapters_alone_and_merged(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        _, _, headers = await post(caller, "/generate", body(adapter_id="one", adapter_source="shelf"))
        assert caller.api.engine.submits[-1].adapter == "print-of-one"
        assert (headers["x-adapter-id"], headers["x-adapter-source"]) == ("one", "shelf")
        merged = {"ids": ["shelf:one", "shelf:two"], "weights": [0.5, 2], "merge_strategy": "linear", "density": 0.0}
        _, _, headers = await post(caller, "/generate", body(merged_adapters=merged))
        assert [adapter.fingerprint for adapter in caller.api.engine.registered][-1:] == [
            caller.api.engine.submits[-1].adapter
        ]
        assert caller.api.engine.submits[-1].adapter == "print-of-one*0.5+two*2"
        assert headers["x-adapter-id"] == "shelf:one,shelf:two"
        for none in (None, "", "__base_model__"):
            await post(caller, "/generate", body(adapter_id=none))
            assert caller.api.engine.submits[-1].adapter is None
        await post(caller, "/generate", body(adapter_id="shelf:secret", api_token="hf_good"))
        assert caller.api.engine.submits[-1].adapter == "print-of-secret"

    drive(tmp_path, scenario)


def test_unknown_fields_are_named(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        _, _, headers = await post(caller, "/generate", {**body(tempratur=1), "stream": False, "x": 1})
        assert headers["x-motet-ignored"] == "parameters.tempratur,x"
        merged = {"ids": ["one", "one"], "weights": [1, 1], "wieghts": []}
        for path in ("/generate", "/embed"):
            _, _, headers = await post(caller, path, {**body(merged_adapters=merged, colour=1), "stream": False})
            assert headers["x-motet-ignored"] == "parameters.merged_adapters.wieghts,parameters.colour"

    drive(tmp_path, scenario)


def test_vectors(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        status, answer, _ = await post(caller, "/embed", {"inputs": "hi", "parameters": None, "stream": False})
        assert (status, list(answer)) == (200, ["embeddings"])
        assert sum(x * x for x in answer["embeddings"]) == pytest.approx(1.0)
        _, adapted, _ = await post(caller, "/embed", {"inputs": "hi", "parameters": {"adapter_id": "one"}})
        assert adapted != answer
        for path in ("/classify", "/classify_batch"):
            status, refused, _ = await post(caller, path, {"inputs": "hi"})
            assert (status, refused["error_type"]) == (404, "not_found")

    drive(tmp_path, scenario)


def test_what_the_server_says_of_itself(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        info = json.loads(await (await caller.client.get("/info")).get_data())
        assert (info["model_id"], info["max_total_tokens"], info["model_device_type"]) == ("tiny", CONTEXT, "cpu")
        for path in ("/", "/ping", "/health", "/startup"):
            response = await caller.client.get(path)
            assert (response.status_code, (await response.get_json())["status"]) == (200, "ok")
        assert params(caller).max_tokens == 1, "/startup makes a token"
        caller.api.engine.ready, caller.api.engine.reason = False, "being loaded"
        for path in ("/", "/ping", "/startup", "/info"):
            assert (await caller.client.get(path)).status_code == 503

    drive(tmp_path, scenario)


def test_text_is_never_with_a_token_that_clients_leave_out(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        held = body(stop=["!!"])  # the last "!" might have been the beginning of it
        shown = [event["token"] for event in await events(caller, held)]
        assert "".join(token["text"] for token in shown if not token["special"]) == "Hello!"
        assert (shown[-1]["special"], shown[-1]["text"]) == (True, "")

    drive(tmp_path, scenario)


def test_starting_up_is_asked_of_the_engine_once_for_all(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for _ in range(5):
            assert (await caller.client.get("/startup")).status_code == 200
        [submit] = caller.api.engine.submits
        assert submit.priority > 127, "behind everybody"

    drive(tmp_path, scenario)
