"""POST /api/generate: answers a prompt, line by line unless `stream` is false."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace
from quart import Blueprint, Response

from motet.api.generating.chat import ChatRun
from motet.api.generating.generation import Generation, check
from motet.api.generating.prompts import completion_prompts
from motet.api.http.body import read_body
from motet.api.http.caller import current_caller
from motet.api.http.sse import LINES, stream_response
from motet.api.ollama.answers import encoded_lines, json_response, load
from motet.api.ollama.errors import OllamaError, ollama_error_line
from motet.api.ollama.objects import OllamaText, final_counts, timestamp
from motet.api.ollama.requests import Images, OllamaRequest, Options, effort, generate_fields, parsed, refuse_images
from motet.api.schema.ignored_fields import note_ignored
from motet.api.schema.operations import ERRORS, TOKEN, Operation
from motet.api.schema.parsing import Parsed
from motet.api.schema.requests import ChatRequest, CompletionRequest, Message
from motet.api.services import Services
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
        errors=ERRORS,
        parameters=(TOKEN,),
        failure=OllamaError,
        lines=True,
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("ollama_generate", __name__)

    @blueprint.post("/api/generate")
    async def generate() -> Response:
        async with services.drain.interruptible():
            asked = await read_body(_parse)
            if not asked.prompt:
                return json_response(await _loaded(services, asked))
            generation = await _generation(services, asked, asked.prompt)
            lines = _lines(services, generation, asked.model)
            if asked.stream is not False:
                return await stream_response(encoded_lines(lines), services.drain, ollama_error_line, LINES)
            return json_response(await _whole(lines))

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[OllamaGenerateRequest]:
    asked = parsed(body, OllamaGenerateRequest)
    request = asked.request
    refuse_images(request.images, "images")
    if request.template:
        raise InvalidRequest(
            "template is not supported; leave it out, or send raw: true and the whole prompt",
            param="template",
            code="unsupported_parameter",
        )
    if request.context:
        raise InvalidRequest(
            "context is not supported; send the earlier messages to /api/chat",
            param="context",
            code="unsupported_parameter",
        )
    return asked


async def _loaded(services: Services, asked: OllamaGenerateRequest) -> OllamaText:
    reason = await load(services, asked, generate_fields(services, asked)["model"])
    return OllamaText(model=asked.model, created_at=timestamp(), done=True, done_reason=reason, response="")


async def _generation(services: Services, asked: OllamaGenerateRequest, prompt: str) -> Generation:
    """The sequence of the request, checked. Raises MotetError."""
    limit = (asked.options or Options()).limit()
    fields = generate_fields(services, asked)
    if asked.raw or asked.suffix:
        return await _continued(services, CompletionRequest(prompt=prompt, suffix=asked.suffix, **fields), limit)
    system = [Message("system", asked.system)] if asked.system else []
    chat = ChatRequest(messages=[*system, Message("user", prompt)], reasoning_effort=effort(asked), **fields)
    run = await ChatRun.start(services, chat, current_caller())
    note_ignored("think" for _ in run.ignored)  # the one hint that these requests have
    return (run if limit is None else run.limited(limit)).generation


async def _continued(services: Services, request: CompletionRequest, limit: int | None) -> Generation:
    """A completion without a limit of its own is as long as the context allows."""
    checked = await check(services, request, current_caller())
    [prompt] = await completion_prompts(services.for_request(checked.adapter, checked.caller), request)
    room = max(checked.model.max_context - len(prompt), 1)
    request = replace(request, max_tokens=room if limit is None else min(limit, room))
    return Generation.of(services, request, checked, [prompt])


async def _lines(
    services: Services, generation: Generation, model: str
) -> AsyncGenerator[tuple[OllamaText, bool], None]:
    """Each line of the answer, and whether the next one is there already."""
    tokens = 0
    async with aclosing(generation.deltas(services)) as deltas:
        async for _, delta in deltas:
            tokens += len(delta.tokens)
            line = OllamaText(model=model, created_at=timestamp(), response=delta.text)
            if delta.finish_reason is not None:
                line = replace(line, **final_counts(generation, delta.finish_reason, tokens))
            yield line, delta.more


async def _whole(lines: AsyncGenerator[tuple[OllamaText, bool], None]) -> OllamaText:
    texts = list[str]()
    async with aclosing(lines):
        async for line, _ in lines:
            texts.append(line.response)
    return replace(line, response="".join(texts))
