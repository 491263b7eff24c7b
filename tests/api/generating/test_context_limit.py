"""The message for a prompt that exceeds the context, on every route, in the form that clients recognise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive
from support.scripted_api import CONTEXT

from motet.api.generating.context_limit import answer_too_long
from motet.api.schema.openai_objects import ENCODER, error_body

EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"
LONG = "x" * CONTEXT  # one token each
HOPELESS = "x" * (CONTEXT * 20)  # not even tokenised

# What clients look for in an error's text, in small letters where they compare so.
LITELLM = "this model's maximum context length is"
CREWAI = "maximum context length"
LANGCHAIN = "context_length_exceeded"
# Cline, Roo Code and others read the numbers.
NUMBERS = re.compile(r"maximum context length is (\d+) tokens")
REQUESTED = re.compile(r"you requested (\d+) tokens \((\d+) in the \w+, (\d+) in the completion\)")

TOO_LONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": HOPELESS}]}, "messages"),
    (CHAT, {"messages": MESSAGES * (CONTEXT + 1)}, "messages"),
    (CHAT, {"messages": MESSAGES, "max_tokens": 8000}, "max_tokens"),
    (CHAT, {"messages": MESSAGES, "max_completion_tokens": 8000}, "max_completion_tokens"),
    (COMPLETIONS, {"prompt": LONG}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", HOPELESS]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 8000}, "max_tokens"),
    (EMBEDDINGS, {"input": LONG}, "input"),
    (EMBEDDINGS, {"input": ["a", LONG]}, "input[1]"),
    (EMBEDDINGS, {"input": HOPELESS}, "input"),
    (RESPONSES, {"input": LONG}, "input"),
    (RESPONSES, {"input": HOPELESS}, "input"),
    (RESPONSES, {"input": "x", "max_output_tokens": 8000}, "max_output_tokens"),
]


def test_clients_recognise_the_overflow_on_every_route(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path, body, param in TOO_LONG:
            response = await caller.post(path, body)
            error = (await response.get_json())["error"]
            assert (response.status_code, error["code"], error["param"]) == (400, LANGCHAIN, param), (path, body)
            text = error["message"]
            assert LITELLM in text.lower()
            assert CREWAI in text.lower()
            assert LANGCHAIN in text
            assert "Please reduce the length of the " in text
            found = NUMBERS.search(text)
            assert found is not None
            assert int(found[1]) in (CONTEXT, CONTEXT - 1)  # an embedding needs a token of room
            if "8000" in str(body):
                numbers = REQUESTED.search(text)
                assert numbers is not None
                total, prompt, answer = map(int, numbers.groups())
                assert (total, answer) == (prompt + 8000, 8000)
                assert f"{param} can be {CONTEXT - prompt} at most" in text

    drive(tmp_path, scenario)


def test_the_openai_sdk_shows_the_code_in_its_text() -> None:
    """langchain-openai looks for it in `str(error)`; newer SDKs show the message alone there."""
    body = ENCODER.encode(error_body(answer_too_long(8192, 9000, 10, "messages", "max_tokens").info()))
    client = openai.OpenAI(
        api_key="k",
        base_url="http://localhost/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(400, content=body))),
    )
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="", messages=[{"role": "user", "content": "hi"}])
    assert LANGCHAIN in str(caught.value)
    assert LITELLM in str(caught.value).lower()
