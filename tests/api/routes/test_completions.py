"""Completions: echo, best_of, suffix, and the options that chat shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive, prompt_of
from support.scripted_api import CONTEXT
from tokenizers import processors

from motet.api.generating.request_params import priority
from motet.api.http.caller import Caller as Who
from motet.api.schema.parsing import parse_completion
from motet.core.errors import Forbidden


async def frames(caller: Caller, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await caller.post(COMPLETIONS, {**body, "stream": True})
    lines = (await response.get_data()).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line and not line.endswith("[DONE]")]


def test_echo_begins_with_the_prompt(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        body = {"prompt": ["ab", "c"], "echo": True, "n": 2, "max_tokens": 3, "logprobs": 1}
        answer = await caller.answer(COMPLETIONS, body)
        assert [choice["text"] for choice in answer["choices"]] == ["abHel", "abHel", "cHel", "cHel"]
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["a", "b", "H", "e", "l"]
        assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
        assert logprobs["token_logprobs"] == [None, -0.25, -0.5, -0.5, -0.5]
        assert logprobs["top_logprobs"][0] is None
        assert answer["usage"]["completion_tokens"] == 12
        streamed = await frames(caller, body)
        texts = dict.fromkeys(range(4), "")
        for frame in streamed:
            for choice in frame["choices"]:
                texts[choice["index"]] += choice["text"]
        assert list(texts.values()) == ["abHel", "abHel", "cHel", "cHel"]
        first = next(f["choices"][0] for f in streamed if f["choices"][0]["index"] == 0)
        assert first["logprobs"]["tokens"] == ["a", "b", "H"]

    drive(tmp_path, scenario)


def test_an_echo_alone_scores_the_prompt(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        body = {"prompt": [104, 105], "echo": True, "max_tokens": 0, "logprobs": 0}
        answer = await caller.answer(COMPLETIONS, body)
        [choice] = answer["choices"]
        text = caller.api.services.tokenizer.decode([104, 105])
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
        assert answer["usage"] | {"prompt_tokens_details": 0, "completion_tokens_details": 0} == {
            "prompt_tokens": 2,
            "completion_tokens": 0,
            "total_tokens": 2,
            "prompt_tokens_details": 0,
            "completion_tokens_details": 0,
        }
        [only, last] = await frames(caller, body)
        assert (only["choices"][0]["text"], last["choices"][0]["finish_reason"]) == (text, "length")
        assert caller.api.engine.submits[-1].params.max_tokens == 1

    drive(tmp_path, scenario)


def test_offsets_are_places_in_the_text_that_is_sent(tmp_path: Path) -> None:
    """Special tokens that the caller wrote are part of the echo; those of a prompt of ids are not."""

    async def scenario(caller: Caller) -> None:
        ids = caller.api.services.tokenizer.encode("<|im_start|>é<|im_end|>!", add_special_tokens=True)
        asked = {"echo": True, "max_tokens": 2, "logprobs": 0}
        for prompt, echo, offsets in (
            ("<|im_start|>é<|im_end|>!", "<|im_start|>é<|im_end|>!", [0, 12, 12, 13, 23, 24, 25]),
            (ids, "é!", [0, 0, 0, 1, 1, 2, 3]),
        ):
            [choice] = (await caller.answer(COMPLETIONS, {"prompt": prompt, **asked}))["choices"]
            assert (choice["text"], choice["logprobs"]["text_offset"]) == (echo + "He", offsets)

    drive(tmp_path, scenario)


def test_an_echo_leaves_an_unfinished_character_to_the_answer(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        text = caller.api.services.tokenizer
        tokens = text.encode("x🦜y", add_special_tokens=False)
        text.encode = lambda *_, **__: tokens[3:]  # type: ignore[method-assign]  # what the engine says
        asked = {"prompt": tokens[:3], "echo": True, "logprobs": 0, "ignore_eos": True}
        [choice] = (await caller.answer(COMPLETIONS, asked))["choices"]
        assert choice["text"] == "x🦜y"
        assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 1, 2]

    drive(tmp_path, scenario)


def test_an_echo_has_no_more_logprobs_than_an_answer(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        asked = {"prompt": [97] * 2000, "n": 25, "echo": True, "logprobs": 20, "max_tokens": 1}
        for stream in (False, True):
            found = await caller.error(COMPLETIONS, {**asked, "stream": stream})
            assert found == (400, "invalid_value", "logprobs")
        await caller.answer(COMPLETIONS, {**asked, "n": 2})

    drive(tmp_path, scenario)


def test_best_of_answers_with_the_likeliest(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        # All tokens are equally likely here, so that the earlier runs win; each run has a seed of its own.
        answer = await caller.answer(COMPLETIONS, {"prompt": ["a", "b"], "n": 1, "best_of": 3, "max_tokens": 2})
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert all(choice["logprobs"] is None for choice in answer["choices"])
        assert answer["usage"]["completion_tokens"] == 12
        submits = caller.api.engine.submits
        assert len(submits) == 6
        assert len({submit.params.seed for submit in submits[:3]}) == 3
        assert [submit.prefix_of for submit in submits[:3]] == [None, submits[0].id, submits[0].id]

    drive(tmp_path, scenario)


def test_a_suffix_needs_a_model_that_fills_gaps(tmp_path: Path) -> None:
    async def without(caller: Caller) -> None:
        found = await caller.error(COMPLETIONS, {"prompt": "a", "suffix": "b"})
        assert found == (400, "unsupported_parameter", "suffix")

    async def having(caller: Caller) -> None:
        services = caller.api.services
        services.tokenizer._tokenizer.add_special_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
        await caller.answer(COMPLETIONS, {"prompt": "a", "suffix": "b"})
        names = [services.tokenizer._tokenizer.id_to_token(id) for id in caller.api.engine.submits[-1].prompt]
        assert names == ["<fim_prefix>", "a", "<fim_suffix>", "b", "<fim_middle>"]
        # A prompt begins as the tokenizer begins texts, also where what it ends texts with is not wanted.
        ends = [("<|im_start|>", 256), ("<|im_end|>", 257)]
        whole = processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ends)
        services.tokenizer._tokenizer.post_processor = whole
        await caller.answer(COMPLETIONS, {"prompt": ["a", ""], "suffix": "b"})
        for submit, prefix in zip(caller.api.engine.submits[-2:], (["a"], []), strict=True):
            names = [services.tokenizer._tokenizer.id_to_token(id) for id in submit.prompt]
            assert names == ["<|im_start|>", "<fim_prefix>", *prefix, "<fim_suffix>", "b", "<fim_middle>"]
        found = await caller.error(COMPLETIONS, {"prompt": [1, 2], "suffix": "b"})
        assert found == (400, "invalid_type", "prompt")
        found = await caller.error(COMPLETIONS, {"prompt": "a", "suffix": "b", "truncate_prompt_tokens": 5})
        assert found == (400, "invalid_value", "truncate_prompt_tokens")

    for name, scenario in (("without", without), ("having", having)):
        (tmp_path / name).mkdir()
        drive(tmp_path / name, scenario)


def test_a_prompt_is_cut_from_the_left(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(COMPLETIONS, {"prompt": "abcdef", "truncate_prompt_tokens": 2})
        assert prompt_of(caller) == "ef"
        answer = await caller.answer(COMPLETIONS, {"prompt": "abc", "truncate_prompt_tokens": 2, "echo": True})
        assert answer["choices"][0]["text"].startswith("bcH")
        await caller.answer(COMPLETIONS, {"prompt": "x" * 2047 + "y", "truncate_prompt_tokens": -1, "max_tokens": 8})
        assert len(caller.api.engine.submits[-1].prompt) == 2040
        status, _, param = await caller.error(COMPLETIONS, {"prompt": "ab", "truncate_prompt_tokens": 0})
        assert (status, param) == (400, "truncate_prompt_tokens")

    drive(tmp_path, scenario)


def test_adapter_id_and_merged_adapters_name_adapters_too(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "adapter_id": "one", "adapter_source": "shelf"})
        assert caller.api.engine.submits[-1].adapter is not None
        merged = {"ids": ["one", "shelf:two"], "weights": [0.5, -1]}
        await caller.answer(COMPLETIONS, {"prompt": "a", "model": "tiny", "merged_adapters": merged})
        assert caller.api.engine.submits[-1].adapter is not None
        for fields, param in (
            ({"model": "one", "adapter_id": "two"}, "adapter_id"),
            ({"model": "one", "merged_adapters": merged}, "merged_adapters"),
            ({"merged_adapters": {"ids": ["one", ""]}}, "merged_adapters.ids[1]"),
        ):
            status, _, found = await caller.error(COMPLETIONS, {"prompt": "a", **fields})
            assert (status, found) == (400, param)
        assert (await caller.error(COMPLETIONS, {"prompt": "a", "adapter_id": "no such"}))[0::2] == (404, "adapter_id")

    drive(tmp_path, scenario)


def test_priorities_reach_the_engine(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(COMPLETIONS, {"prompt": "a", "priority": 5})
        assert caller.api.engine.submits[-1].priority == 5

    drive(tmp_path, scenario)
    request = parse_completion({"model": "", "prompt": "a", "priority": -1}).request
    assert priority(request, Who(owner="alice", admin=True, priority=10)) == 9
    with pytest.raises(Forbidden) as caught:
        priority(request, Who(owner="alice"))
    assert caught.value.param == "priority"


def test_copies_of_a_prompt_draw_differently_unless_a_seed_is_asked_for(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for seed, different in ((None, 6), (5, 2)):
            caller.api.engine.submits.clear()
            await caller.answer(COMPLETIONS, {"prompt": ["a", "a", "a"], "n": 2, "seed": seed})
            assert len({submit.params.seed for submit in caller.api.engine.submits}) == different

    drive(tmp_path, scenario)


def test_special_tokens_take_no_room_in_the_text(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "ab<|im_start|>cd"
        answer = await caller.answer(COMPLETIONS, {"prompt": "x", "logprobs": 0})
        assert answer["choices"][0]["text"] == "abcd"
        assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 2, 3]

    drive(tmp_path, scenario)


def test_what_is_cut_to_fit_leaves_room_for_the_answer(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        cut = {"truncate_prompt_tokens": -1}
        messages = [{"role": "user", "content": "x" * 3000}]
        for path, fields, room in (
            (CHAT, {"messages": messages, "max_tokens": 100}, 100),
            (CHAT, {"messages": messages, "max_completion_tokens": 100}, 100),
            (COMPLETIONS, {"prompt": "x" * 3000}, 16),
            ("/v1/responses", {"input": "x" * 3000, "max_output_tokens": 50}, 50),
        ):
            await caller.answer(path, {**fields, **cut})
            submit = caller.api.engine.submits[-1]
            assert (len(submit.prompt), submit.params.max_tokens) == (CONTEXT - room, room)

    drive(tmp_path, scenario)
