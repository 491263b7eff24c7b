"""The ollama package of PyPI against a running server. Prints the name of each part that works."""

from __future__ import annotations

import sys
from typing import Any

import ollama

client = ollama.Client(sys.argv[1])
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]
SHORT: Any = {"num_predict": 8, "temperature": 0}


def discovery() -> None:
    assert "demo:pirate" in [model.model for model in client.list().models]
    shown = client.show("demo:pirate")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 8192
    assert "tools" in (shown.capabilities or [])


def chat() -> None:
    whole = client.chat("pirate:latest", messages=MESSAGES, options=SHORT)
    assert (whole.done_reason, whole.eval_count) == ("length", 8)
    pieces = list(client.chat("pirate:latest", messages=MESSAGES, options=SHORT, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done


def generate() -> None:
    whole = client.generate("smollm2", "Once upon a time", raw=True, options=SHORT)
    pieces = list(client.generate("smollm2", "Once upon a time", raw=True, options=SHORT, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response
    assert client.generate("pirate").done_reason == "load"


def formats() -> None:
    schema: Any = {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]}
    answer = client.chat("smollm2", messages=MESSAGES, format=schema, options={"num_predict": 64})
    assert '"deep"' in (answer.message.content or "")


def errors() -> None:
    for stream in (False, True):
        try:
            list(client.chat("demo:nobody", messages=MESSAGES, stream=stream))
        except ollama.ResponseError as error:
            found = error
        assert (found.status_code, "nobody" in found.error) == (404, True)


for check in (discovery, chat, generate, formats, errors):
    check()
    print(check.__name__)
