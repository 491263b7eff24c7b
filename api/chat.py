"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.body import read_body
from motet.api.generation import Generation, check, collect
from motet.api.logprobs import chat_logprobs, packed, told
from motet.api.parsing import parse_chat
from motet.api.prompts import chat_prompt
from motet.api.responses import (
    ENCODER,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Delta,
    Usage,
)
from motet.api.services import Services
from motet.api.sse import DONE, event, stream_response
from motet.core.messages import TokenEvent


def chat_routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    routes = Blueprint("chat", __name__)

    @routes.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_chat)
            checked = await check(services, request)
            prompt = await chat_prompt(services, request, checked.adapter)
            generation = Generation.of(services, request, checked, [prompt])
            if request.stream:
                events = chat_events(generation, services, request.include_usage)
                return await stream_response(events, services.drain)
            answer = await chat_completion(generation, services)
            return Response(ENCODER.encode(answer), content_type="application/json")

    return routes


async def chat_completion(generation: Generation, services: Services) -> ChatCompletion:
    """Run `generation` to its end."""
    logprobs = [ChatLogprobs([]) if generation.wants_logprobs else None for _ in generation.submits]

    def write_logprobs(index: int, tokens: Sequence[TokenEvent]) -> None:
        if (written := logprobs[index]) is not None:
            written.content.extend(map(packed, chat_logprobs(services.text, tokens).content))

    outputs = await collect(generation, services, write_logprobs)
    choices = [
        ChatChoice(index, ChatMessage(content=output.text), logprobs[index], output.finish())
        for index, output in enumerate(outputs)
    ]
    return ChatCompletion(
        id=generation.id,
        created=generation.created,
        model=generation.model,
        choices=choices,
        usage=generation.usage(sum(output.tokens for output in outputs)),
        system_fingerprint=generation.fingerprint,
    )


async def chat_events(generation: Generation, services: Services, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The stream: each choice's role, its text, its finish; then usage, if it is wanted; then [DONE]."""
    usage = None if include_usage else UNSET

    def chunk(*choices: ChatChunkChoice, usage: Usage | UnsetType | None = usage) -> bytes:
        return event(
            ChatChunk(
                id=generation.id,
                created=generation.created,
                model=generation.model,
                choices=choices,
                system_fingerprint=generation.fingerprint,
                usage=usage,
            )
        )

    # The SDK's accumulator wants choices to come up in the order of their indexes. Not sent before there is
    # something to say: until then a failure still gets a status of its own.
    hello = Delta(role="assistant", content="")
    frames = b"".join(chunk(ChatChunkChoice(index, hello)) for index in range(len(generation.submits)))
    count = 0
    async with aclosing(generation.deltas(services)) as deltas:
        async for index, delta in deltas:
            count += len(delta.tokens)
            tokens = told(delta.tokens) if generation.wants_logprobs else ()
            if delta.text or tokens:
                logprobs = chat_logprobs(services.text, tokens) if tokens else None
                frames += chunk(ChatChunkChoice(index, Delta(content=delta.text), logprobs))
            if delta.finish_reason is not None:
                frames += chunk(ChatChunkChoice(index, Delta(), None, delta.finish_reason))
            if frames:
                yield frames
                frames = b""
    yield (chunk(usage=generation.usage(count)) if include_usage else b"") + DONE
