"""The anthropic package of PyPI against a running server. Prints the name of each part that works."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anthropic
from anthropic import Anthropic, AsyncAnthropic

URL = sys.argv[1]
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about the sea in one sentence."}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bergen", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"temperature": 0}  # the package has no argument for it any more
client = Anthropic(base_url=URL, api_key="none", max_retries=0)


def models() -> None:
    listed = list(client.models.list(limit=2))  # several pages
    assert "demo:pirate" in [model.id for model in listed]
    model = client.models.retrieve("demo:pirate")
    assert (model.type, model.display_name) == ("model", "pirate")
    assert model.created_at.year > 2000


def messages() -> None:
    answer = client.messages.create(model="pirate", max_tokens=12, messages=MESSAGES, system="Be brief.")
    [block] = answer.content
    assert block.type == "text"
    assert block.text
    assert (answer.model, answer.stop_reason, answer.usage.output_tokens) == ("pirate", "max_tokens", 12)
    assert (answer._request_id or "").startswith("req_")


def streaming() -> None:
    options: Any = {"model": "pirate", "max_tokens": 12, "messages": MESSAGES, "extra_body": GREEDY}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert (final.usage, final.stop_reason) == (whole.usage, whole.stop_reason)
    kinds = [event.type for event in client.messages.create(**options, stream=True)]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])


def tools() -> None:
    options: Any = {"model": "", "max_tokens": 64, "extra_body": GREEDY, "tools": [WEATHER]}
    choice = {"type": "tool", "name": "get_weather"}
    answer = client.messages.create(**options, messages=MESSAGES, tool_choice=choice)
    [call] = answer.content
    assert (call.type, call.name, answer.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert call.input["city"] in ("Bergen", "Oslo")
    with client.messages.stream(**options, messages=MESSAGES, tool_choice=choice) as stream:
        assert stream.get_final_message().content[0].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    history = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    answered = client.messages.create(**{**options, "max_tokens": 8}, messages=history)
    assert answered.stop_reason in ("end_turn", "max_tokens", "tool_use")


def counting() -> None:
    options: Any = {"model": "terse", "messages": MESSAGES, "tools": [WEATHER], "system": "Be brief."}
    counted = client.messages.count_tokens(**options)
    assert counted.input_tokens == client.messages.create(**options, max_tokens=1).usage.input_tokens


def endings() -> None:
    options: Any = {"model": "", "messages": MESSAGES, "extra_body": GREEDY}
    text = client.messages.create(**options, max_tokens=12).content[0].text
    word = text.split()[2]
    cut = client.messages.create(**options, max_tokens=12, stop_sequences=[word])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)
    assert cut.content[0].text == text[: text.index(word)]
    prefilled: Any = [*MESSAGES, {"role": "assistant", "content": "The sea is"}]
    assert client.messages.create(model="", max_tokens=4, messages=prefilled).content[0].text


def failure(stream: bool, **options: Any) -> anthropic.APIStatusError:
    """The error that a request raises."""
    try:
        client.messages.create(**{"model": "", "max_tokens": 4, "messages": MESSAGES, **options}, stream=stream)
    except anthropic.APIStatusError as error:
        return error
    raise AssertionError(f"{options} did not fail")


def errors() -> None:
    long = [{"role": "user", "content": "x " * 9000}]
    for options, kind, message in (
        ({"model": "demo:nobody"}, anthropic.NotFoundError, "nobody"),
        ({"extra_body": {"temperature": -1}}, anthropic.BadRequestError, "temperature"),
        ({"messages": long}, anthropic.BadRequestError, "prompt is too long"),
    ):
        for stream in (False, True):
            error = failure(stream, **options)
            assert isinstance(error, kind), error
            assert message in str(error), error
            assert error.request_id == error.body["request_id"]  # type: ignore[index]


async def asynchronous() -> None:
    other = AsyncAnthropic(base_url=URL, auth_token="none", max_retries=0)
    async with other, other.messages.stream(model="", max_tokens=6, messages=MESSAGES) as stream:
        assert [text async for text in stream.text_stream]


for check in (models, messages, streaming, tools, counting, endings, errors):
    check()
    print(check.__name__)
asyncio.run(asynchronous())
print("asynchronous")
