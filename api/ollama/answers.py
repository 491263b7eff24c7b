"""How both of Ollama's generating routes answer: whole, line by line, or with nothing but a loaded adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from quart import Response

from motet.api.generating.adapter_choice import chosen_adapter
from motet.api.http.caller import current_caller
from motet.api.ollama.objects import DoneReason, OllamaCounts
from motet.api.ollama.requests import OllamaRequest
from motet.api.schema.objects import ENCODER
from motet.api.schema.requests import AdapterChoice
from motet.api.services import Services

A = TypeVar("A", bound=OllamaCounts)


def json_response(answer: OllamaCounts) -> Response:
    """`answer` as a whole body."""
    return Response(ENCODER.encode(answer), content_type="application/json")


async def encoded_lines(lines: AsyncGenerator[tuple[A, bool], None]) -> AsyncGenerator[bytes, None]:
    """The lines of (answer, whether the next one is there already) as bytes; those that are there go together."""
    frames = b""
    async with aclosing(lines):
        async for line, more in lines:
            frames += ENCODER.encode(line) + b"\n"
            if not more:
                yield frames
                frames = b""


async def load(services: Services, asked: OllamaRequest, model: str) -> DoneReason:
    """Load the adapter `model` for a request without a prompt, and say what such a request is done with."""
    await chosen_adapter(services, AdapterChoice(model=model), current_caller())
    return "unload" if asked.keep_alive == 0 else "load"
