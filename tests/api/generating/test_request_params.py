"""Requests to sampling parameters: defaults, limits, ids."""

from __future__ import annotations

from typing import Any

import pytest

from motet.api.generating.request_params import MAX_LOGPROBS, check_logprobs, sampling_params, token_limit
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.parsing import parse_chat, parse_completion
from motet.core.errors import ContextExceeded, InvalidRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.client.tokenizer import GenerationDefaults

RECOMMENDED = GenerationDefaults(temperature=0.2, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)


def chat(**fields: Any) -> ChatRequest:
    return parse_chat({"model": "", "messages": [{"role": "user", "content": "hi"}], **fields}).request


def completion(**fields: Any) -> CompletionRequest:
    return parse_completion({"model": "", "prompt": "hi", **fields}).request


def params(request: ChatRequest | CompletionRequest, defaults: GenerationDefaults | None = None) -> SamplingParams:
    return sampling_params(request, defaults or GenerationDefaults(), [9, 2, 9], vocab_size=100)


def test_openais_defaults_come_last() -> None:
    plain = params(chat(seed=1))
    assert plain == SamplingParams(max_tokens=0, seed=1, eos_token_ids=(2, 9))


def test_the_models_defaults_come_second() -> None:
    found = params(chat(), RECOMMENDED)
    assert (found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty) == (
        0.2,
        0.9,
        20,
        0.1,
        1.1,
    )


def test_the_request_comes_first_also_with_a_zero() -> None:
    found = params(chat(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1), RECOMMENDED)
    assert (found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty) == (0, 1, 0, 0, 1)


def test_a_top_p_of_zero_is_the_likeliest_token_alone() -> None:
    found = params(chat(top_p=0, top_k=40))
    assert (found.top_p, found.top_k) == (1.0, 1)


def test_minus_one_is_another_off() -> None:
    assert params(chat(top_k=-1)).top_k == 0


def test_an_absent_seed_is_a_new_one_each_time() -> None:
    seeds = {params(chat()).seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["ignore_eos", "ignore_eos_token"])
def test_ignore_eos_has_two_names(name: str) -> None:
    assert params(chat(**{name: True})).ignore_eos


def test_logprobs() -> None:
    assert params(chat()).logprobs is None
    assert params(chat(logprobs=False)).logprobs is None
    assert params(chat(logprobs=True)).logprobs == 0
    assert params(chat(logprobs=True, top_logprobs=3)).logprobs == 3
    assert params(completion(logprobs=0)).logprobs == 0
    assert params(completion()).logprobs is None


def test_logit_bias_is_by_token_id() -> None:
    assert params(chat(logit_bias={"3": -100, "99": 1.5})).logit_bias == {3: -100.0, 99: 1.5}


@pytest.mark.parametrize("key", ["100", "-1", "x", "", "1.0", "²", "9" * 30])
def test_logit_bias_wants_ids_of_the_vocabulary(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(chat(logit_bias={key: 1}))
    assert caught.value.param == "logit_bias"


def test_stop_token_ids_are_of_the_vocabulary() -> None:
    assert params(chat(stop_token_ids=[99])).stop_token_ids == (99,)
    with pytest.raises(InvalidRequest) as caught:
        params(chat(stop_token_ids=[1, 100]))
    assert caught.value.param == "stop_token_ids[1]"


def test_how_long_an_answer_may_be() -> None:
    assert token_limit(chat(), 30, 100) == 70
    assert token_limit(chat(max_tokens=70), 30, 100) == 70
    assert token_limit(chat(max_completion_tokens=5), 30, 100) == 5
    assert token_limit(completion(), 30, 100) == 16
    assert token_limit(completion(), 95, 100) == 5


@pytest.mark.parametrize(
    ("request_", "prompt_tokens", "param"),
    [
        (chat(max_tokens=71), 30, "max_tokens"),
        (chat(max_completion_tokens=71), 30, "max_completion_tokens"),
        (chat(), 100, "messages"),
        (completion(), 100, "prompt"),
        (completion(max_tokens=71), 30, "max_tokens"),
    ],
)
def test_context_length_errors_name_the_token_counts(
    request_: ChatRequest | CompletionRequest, prompt_tokens: int, param: str
) -> None:
    with pytest.raises(ContextExceeded) as caught:
        token_limit(request_, prompt_tokens, 100)
    assert caught.value.param == param
    assert caught.value.code == "context_length_exceeded"
    message = caught.value.message
    assert message.startswith("This model's maximum context length is 100 tokens. However, y")
    assert message.endswith(" (context_length_exceeded)")
    assert f"{prompt_tokens} in the " in message or f"resulted in {prompt_tokens} tokens" in message


def test_min_tokens_fits_into_the_answer() -> None:
    assert token_limit(chat(min_tokens=5, max_tokens=5), 30, 100) == 5
    with pytest.raises(InvalidRequest) as caught:
        token_limit(chat(min_tokens=6, max_tokens=5), 30, 100)
    assert caught.value.param == "min_tokens"


def test_a_whole_answer_has_so_many_logprobs_and_a_stream_any_number() -> None:
    at_most = MAX_LOGPROBS // 21
    check_logprobs(chat(logprobs=True, top_logprobs=20), at_most, 10**9)
    check_logprobs(chat(), 10**9, 10**9)
    check_logprobs(chat(logprobs=True, top_logprobs=20, stream=True), 10**9, 10**9)
    check_logprobs(completion(logprobs=20, echo=True, stream=True), 10**9, at_most)
    for request, answer, prompt, param in (
        (chat(logprobs=True, top_logprobs=20), at_most + 1, 0, "top_logprobs"),
        (chat(logprobs=True), MAX_LOGPROBS + 1, 0, "logprobs"),
        (completion(logprobs=20), at_most + 1, 0, "logprobs"),
        (completion(logprobs=20, echo=True), 1, at_most, "logprobs"),
        (completion(logprobs=20, echo=True, stream=True), 1, at_most + 1, "logprobs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            check_logprobs(request, answer, prompt)
        assert caught.value.param == param
