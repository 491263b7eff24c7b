"""The openai package of PyPI against a real server: everything beyond plain chat, which tests/api has."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about the sea in one sentence."}]
TERMINAL = ("completed", "failed", "expired", "cancelled")


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Bergen", "Oslo"]


class Sea(BaseModel):
    name: Literal["North Sea", "Baltic"]
    deep: bool


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", ["", "pirate"])
def test_a_required_tool_is_called_with_valid_arguments(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model,
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=64,
    )
    [choice] = answer.choices
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    assert choice.finish_reason == "tool_calls"


def test_a_streamed_call_adds_up_to_the_whole_one(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather)
    choice: Any = {"type": "function", "function": {"name": "Weather"}}
    options: dict[str, Any] = {"model": "", "messages": MESSAGES, "tools": [tool], "tool_choice": choice}
    options |= {"max_tokens": 64, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.tool_calls
    with client.chat.completions.stream(**options) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert whole
    assert streamed
    assert [c.function.arguments for c in streamed] == [c.function.arguments for c in whole]


def test_a_tool_s_result_goes_back(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "Weather", "arguments": '{"city": "Oslo"}'}}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = client.chat.completions.create(
        model="", messages=history, tools=[openai.pydantic_function_tool(Weather)], max_tokens=8
    )
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_structured_output_parses(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model="", messages=MESSAGES, response_format=Sea, max_tokens=64)
    assert isinstance(answer.choices[0].message.parsed, Sea)
    response = client.responses.parse(model="pirate", input="Name a sea.", text_format=Sea, max_output_tokens=64)
    assert isinstance(response.output_parsed, Sea)


def test_echo_scores_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(
        model="", prompt="The sea is wide.", echo=True, logprobs=2, max_tokens=0, temperature=0
    )
    [choice] = answer.choices
    assert choice.text == "The sea is wide."
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert all(score < 0 for score in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.text_offset == [0, 3, 7, 10, 15]


def test_embeddings_are_the_same_in_both_encodings(client: OpenAI) -> None:
    texts = ["the sea", "a ship"]
    packed = client.embeddings.create(model="", input=texts)
    plain = client.embeddings.create(model="", input=texts, encoding_format="float")
    voice = client.embeddings.create(model="pirate", input=texts)
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-5)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert voice.data[0].embedding != pytest.approx(plain.data[0].embedding, abs=1e-3)


def test_responses_chain_stream_and_go_away(client: OpenAI) -> None:
    first = client.responses.create(model="", input="Name a sea.", max_output_tokens=16)
    assert first.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    with client.responses.stream(  # of a form that ends: the helper wants a response that is complete
        model="pirate", input="And another?", previous_response_id=first.id, text_format=Sea, max_output_tokens=64
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text
    assert final.output_parsed == Sea.model_validate_json(text)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_response_in_the_background_can_be_cancelled(client: OpenAI) -> None:
    response = client.responses.create(model="", input="Write a long tale.", background=True, max_output_tokens=4000)
    cancelled = client.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"


def test_a_batch_runs_beside_live_traffic(client: OpenAI) -> None:
    bodies = [{"model": model, "messages": MESSAGES, "max_tokens": 4} for model in ("", "pirate", "no/such/adapter")]
    lines = [
        json.dumps({"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n, body in enumerate(bodies)
    ]
    file = client.files.create(file=io.BytesIO("\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    live = client.chat.completions.create(model="terse", messages=MESSAGES, max_tokens=4)
    assert live.choices[0].message.content
    deadline = time.monotonic() + 60
    while batch.status not in TERMINAL and time.monotonic() < deadline:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert batch.output_file_id
    assert batch.error_file_id
    done = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in done) == ["line-0", "line-1"]
    assert all(line["response"]["body"]["choices"] for line in done)
    [failed] = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert failed["custom_id"] == "line-2"
    assert failed["response"]["status_code"] == 404
