"""The responses of Ollama's generating routes: whole, line by line, or for a request that only loads an adapter."""

from __future__ import annotations

from quart import Response

from motet.api.generating.adapter_choice import resolve_adapter
from motet.api.http.caller import current_caller
from motet.api.http.drain import Drain
from motet.api.http.stream_response import Frames, joined, stream_response
from motet.api.ollama.errors import ollama_error_line
from motet.api.ollama.objects import DoneReason, OllamaCounts
from motet.api.ollama.requests import OllamaRequest
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.openai_objects import ENCODER
from motet.api.services import Services

LINES = "application/x-ndjson"


def line_frame(answer: OllamaCounts) -> bytes:
    """`answer` as one line of a stream."""
    return ENCODER.encode(answer) + b"\n"


async def stream_lines(lines: Frames, drain: Drain) -> Response:
    """The response that sends `lines` as they arrive."""
    return await stream_response(joined(lines), drain, ollama_error_line, LINES)


async def load(services: Services, body: OllamaRequest, model: str) -> DoneReason:
    """Load the adapter `model` for a request without a prompt; return the answer's `done_reason`."""
    await resolve_adapter(services, AdapterChoice(model=model), current_caller())
    return "unload" if body.keep_alive == 0 else "load"
