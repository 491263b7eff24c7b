"""POST /api/generate: answers a prompt, line by line unless `stream` is false."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from quart import Blueprint, Response

from motet.api.generating.answer import collect
from motet.api.generating.chat_generation import start_chat
from motet.api.generating.checked_request import check_request
from motet.api.generating.generation import Generation
from motet.api.generating.prompts import completion_prompts
from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.http.stream_response import Frames
from motet.api.ollama.answers import line_frame, load, stream_lines
from motet.api.ollama.errors import OllamaError
from motet.api.ollama.objects import OllamaText, final_counts, timestamp
from motet.api.ollama.requests import Images, OllamaRequest, Options, effort, generate_fields, parsed, refuse_images
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest


class OllamaGenerateRequest(OllamaRequest, frozen=True, kw_only=True):
    """Body of POST /api/generate. Without a prompt, the adapter is loaded and the answer is empty."""

    prompt: Annotated[str | None, Meta(description="A user's message; with `raw` or `suffix`, text to continue.")] = (
        None
    )
    suffix: Annotated[str | None, Meta(description="The text that follows the answer.")] = None
    system: Annotated[str | None, Meta(description="The system prompt.")] = None
    raw: Annotated[bool | None, Meta(description="Do not use the chat template.")] = None
    images: Images = None
    template: Annotated[str | None, Meta(description="Only empty: the model's own chat template is used.")] = None
    context: Annotated[list[int] | None, Meta(description="Only empty; /api/chat takes earlier messages.")] = None


OPERATIONS = (
    Operation(
        "post",
        "/api/generate",
        "Answer a prompt, in the shape of Ollama's API",
        "ollama",
        OllamaText,
        body=OllamaGenerateRequest,
        example={"model": "", "prompt": "Tell me about the sea.", "stream": False, "options": {"num_predict": 32}},
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
        error_response=OllamaError,
        json_lines=True,
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("ollama_generate", __name__)

    @blueprint.post("/api/generate")
    async def generate() -> Response:
        async with services.drain.interruptible():
            body = await read_body(_parse)
            if not body.prompt:
                return json_response(await _load(services, body))
            generation = await _start(services, body, body.prompt)
            if body.stream is not False:
                return await stream_lines(write_stream(generation, body.model), services.drain)
            return json_response(await write_whole(generation, body.model))

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[OllamaGenerateRequest]:
    result = parsed(body, OllamaGenerateRequest)
    request = result.request
    refuse_images(request.images, "images")
    if request.template:
        raise InvalidRequest(
            "template is not supported; leave it out, or send raw: true and the whole prompt",
            param="template",
            code=error_codes.UNSUPPORTED_PARAMETER,
        )
    if request.context:
        raise InvalidRequest(
            "context is not supported; send the earlier messages to /api/chat",
            param="context",
            code=error_codes.UNSUPPORTED_PARAMETER,
        )
    return result


async def _load(services: Services, body: OllamaGenerateRequest) -> OllamaText:
    reason = await load(services, body, generate_fields(services, body)["model"])
    return OllamaText(model=body.model, created_at=timestamp(), done=True, done_reason=reason, response="")


async def _start(services: Services, body: OllamaGenerateRequest, prompt: str) -> Generation:
    """Check and render the request: as a completion if it is raw or has a suffix, else as a chat. Raises MotetError."""
    limit = (body.options or Options()).limit()
    fields = generate_fields(services, body)
    if body.raw or body.suffix:
        return await _start_raw(services, CompletionRequest(prompt=prompt, suffix=body.suffix, **fields), limit)
    system = [Message("system", body.system)] if body.system else []
    request = ChatRequest(messages=[*system, Message("user", prompt)], reasoning_effort=effort(body), **fields)
    chat = await start_chat(services, request, current_caller())
    note_ignored("think" for _ in chat.ignored)  # the one hint that these requests have
    return (chat if limit is None else chat.limited(limit)).generation


async def _start_raw(services: Services, request: CompletionRequest, limit: int | None) -> Generation:
    """A completion; without a limit, it may be as long as the context allows."""
    checked = await check_request(services, request, current_caller())
    [prompt] = await completion_prompts(checked.services, request)
    room = checked.context_left(prompt)
    request = msgspec.structs.replace(request, max_tokens=room if limit is None else min(limit, room))
    return Generation.of(replace(checked, request=request), [prompt])


async def write_whole(generation: Generation, model: str) -> OllamaText:
    """The whole answer. Raises MotetError."""
    [answer] = await collect(generation.deltas(), 1)
    counts = final_counts(generation, answer.finish(), answer.tokens)
    return OllamaText(model=model, created_at=timestamp(), response=answer.text, **counts)


async def write_stream(generation: Generation, model: str) -> Frames:
    """The lines of the answer."""
    tokens = 0
    async with aclosing(generation.deltas()) as deltas:
        async for _, delta in deltas:
            tokens += len(delta.tokens)
            ended = delta.finish_reason is not None
            counts = final_counts(generation, delta.finish_reason, tokens) if ended else {}
            line = OllamaText(model=model, created_at=timestamp(), response=delta.text, **counts)
            yield line_frame(line), delta.more
