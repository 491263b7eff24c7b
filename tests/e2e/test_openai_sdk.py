"""The official openai package with a whole server, used as OpenAI's customers use it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about the sea in two sentences."}]
ADAPTERS = ["pirate", "demo:terse", "demo:ticket"]
EVERYONE = ["", *ADAPTERS]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="EMPTY", max_retries=0, timeout=120) as client:
        yield client


def text_of(client: OpenAI, model: str, **extra: Any) -> str:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, **{**GREEDY, **extra})
    return answer.choices[0].message.content or ""


def test_concurrent_requests_get_the_same_answers_as_single_ones(server_url: str, client: OpenAI) -> None:
    alone = {model: text_of(client, model) for model in EVERYONE}
    assert len(set(alone.values())) == len(EVERYONE)

    async def whole(client: AsyncOpenAI, model: str) -> str:
        answer = await client.chat.completions.create(model=model, messages=MESSAGES, **GREEDY)
        assert answer.model == model
        assert answer.choices[0].message.role == "assistant"
        return answer.choices[0].message.content or ""

    async def streamed(client: AsyncOpenAI, model: str) -> str:
        pieces = []
        stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **GREEDY)
        async for chunk in stream:
            assert chunk.model == model
            pieces.append(chunk.choices[0].delta.content or "")
        return "".join(pieces)

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="EMPTY", max_retries=0, timeout=120) as client:
            return await asyncio.gather(
                *(whole(client, model) for model in EVERYONE), *(streamed(client, model) for model in EVERYONE)
            )

    assert asyncio.run(together()) == [alone[model] for model in EVERYONE] * 2


def test_the_base_has_a_name_too(client: OpenAI) -> None:
    name = client.models.list().data[0].id
    assert text_of(client, name) == text_of(client, "")


def test_models_are_listed_and_found_by_their_ids(client: OpenAI) -> None:
    models = client.models.list().data
    ids = [model.id for model in models]
    assert {"demo:pirate", "demo:terse", "demo:ticket"} <= set(ids)
    for model in models:
        found = client.models.retrieve(model.id)
        assert found.id == model.id
        assert found.object == "model"
        assert found.created > 0
    assert client.models.retrieve("pirate").id == "demo:pirate"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("demo:no/such@thing")


def test_the_sdks_accumulator_reads_the_stream(client: OpenAI) -> None:
    # The accumulator raises for an answer that max_tokens cut short.
    whole: dict[str, Any] = {"stop": [".", "!", ","], "max_tokens": 120, "temperature": 0}
    with client.chat.completions.stream(
        model="pirate", messages=MESSAGES, n=2, stream_options={"include_usage": True}, **whole
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert events
    assert [choice.index for choice in final.choices] == [0, 1]
    assert {choice.message.role for choice in final.choices} == {"assistant"}
    assert final.choices[0].message.content == text_of(client, "pirate", **whole)
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.total_tokens == final.usage.prompt_tokens + final.usage.completion_tokens


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="demo:terse", prompt=["The sea", "A ship"], n=2, temperature=0, max_tokens=6
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    stream = client.completions.create(model="demo:terse", prompt="The sea", temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    assert client.completions.create(model="", prompt="x").choices[0].finish_reason in ("stop", "length")


def test_chat_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="", messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    said = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert said.decode() == answer.choices[0].message.content
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.top_logprobs[0].token == entry.token  # greedy took the likeliest


def test_completion_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(model="", prompt="The sea", logprobs=2, temperature=0, max_tokens=5)
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs) == 5
    assert "".join(logprobs.tokens) == choice.text
    assert all(
        choice.text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)
    )
    assert all(token in top for top, token in zip(logprobs.top_logprobs, logprobs.tokens, strict=True))


def test_seeds(client: OpenAI) -> None:
    def sampled(**extra: Any) -> list[str]:
        answer = client.chat.completions.create(model="", messages=MESSAGES, temperature=1.5, max_tokens=12, **extra)
        return [choice.message.content or "" for choice in answer.choices]

    first = sampled(seed=11, n=3)
    assert first == sampled(seed=11, n=3)
    assert len(set(first)) == 3
    assert sampled(seed=11) == first[:1]
    assert sampled(seed=12) != first[:1]
    assert sampled() != sampled()


def test_stop_strings(client: OpenAI) -> None:
    whole = text_of(client, "")
    word = whole.split()[3]
    answer = client.chat.completions.create(model="", messages=MESSAGES, stop=[word, "never said"], **GREEDY)
    assert answer.choices[0].message.content == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(model="", messages=MESSAGES, stop=word, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole[: whole.index(word)]


def test_lengths(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="", messages=MESSAGES, temperature=0, **{name: 3})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("model", ["", "demo:ticket"])
def test_json_mode(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Describe a ship as JSON with the fields name and length."}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=200,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    else:
        assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_lorax_extras_in_the_body(client: OpenAI) -> None:
    extra = {"adapter_source": "demo", "top_k": 1, "repetition_penalty": 1.0, "ignore_eos_token": True}
    answer = client.chat.completions.create(
        model="pirate", messages=MESSAGES, temperature=1, max_tokens=24, extra_body=extra
    )
    assert answer.choices[0].message.content == text_of(client, "pirate")
    biased = client.completions.create(
        model="", prompt="The sea", temperature=0, max_tokens=4, extra_body={"logit_bias": {"28": 100}}
    )
    assert len(set(biased.choices[0].text)) == 1


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"model": "no-such-adapter"}, (openai.NotFoundError, 404, "model_not_found", "model")),
        ({"temperature": 9}, (openai.BadRequestError, 400, "invalid_value", "temperature")),
        ({"functions": [{"name": "f"}]}, (openai.BadRequestError, 400, "unsupported_parameter", "functions")),
        ({"max_tokens": 10**7}, (openai.BadRequestError, 400, "context_length_exceeded", "max_tokens")),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_exceptions(
    client: OpenAI, fields: dict[str, Any], wanted: tuple[type[openai.APIStatusError], int, str, str], stream: bool
) -> None:
    with pytest.raises(wanted[0]) as caught:
        client.chat.completions.create(**{"model": "", "messages": MESSAGES, "stream": stream, **fields})
    error = caught.value
    assert (type(error), error.status_code, error.code, error.param) == wanted
    assert error.request_id
    assert error.message
