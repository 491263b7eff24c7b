"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.body import read_body
from motet.api.generation import Generation, check, collect
from motet.api.logprobs import CompletionLogprobsWriter, packed, told
from motet.api.parsing import parse_completion
from motet.api.prompts import completion_prompts
from motet.api.responses import ENCODER, Completion, CompletionChoice, CompletionLogprobs, Usage
from motet.api.services import Services
from motet.api.sse import DONE, event, stream_response
from motet.core.messages import TokenEvent


def completion_routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    routes = Blueprint("completions", __name__)

    @routes.post("/v1/completions")
    async def completions() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_completion)
            checked = await check(services, request)
            prompts = await completion_prompts(services, request, checked.model)
            generation = Generation.of(services, request, checked, prompts)
            if request.stream:
                events = completion_events(generation, services, request.include_usage)
                return await stream_response(events, services.drain)
            answer = await completion(generation, services)
            return Response(ENCODER.encode(answer), content_type="application/json")

    return routes


def _answer(
    generation: Generation, choices: tuple[CompletionChoice, ...], usage: Usage | UnsetType | None
) -> Completion:
    return Completion(
        id=generation.id,
        created=generation.created,
        model=generation.model,
        choices=choices,
        system_fingerprint=generation.fingerprint,
        usage=usage,
    )


async def completion(generation: Generation, services: Services) -> Completion:
    """Run `generation` to its end."""
    writers = [CompletionLogprobsWriter(services.text) for _ in generation.submits]
    logprobs = [CompletionLogprobs([], [], [], []) if generation.wants_logprobs else None for _ in writers]

    def write_logprobs(index: int, tokens: Sequence[TokenEvent]) -> None:
        if (written := logprobs[index]) is not None:
            new = writers[index].write(tokens)
            written.text_offset.extend(new.text_offset)
            written.token_logprobs.extend(new.token_logprobs)
            written.tokens.extend(new.tokens)
            written.top_logprobs.extend(map(packed, new.top_logprobs))

    outputs = await collect(generation, services, write_logprobs)
    choices = [
        CompletionChoice(index, output.text, logprobs[index], output.finish()) for index, output in enumerate(outputs)
    ]
    return _answer(generation, tuple(choices), generation.usage(sum(output.tokens for output in outputs)))


async def completion_events(
    generation: Generation, services: Services, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The stream: text, each choice's finish; then usage, if it is wanted; then [DONE]."""
    usage = None if include_usage else UNSET
    writers = [CompletionLogprobsWriter(services.text) for _ in generation.submits]
    count = 0
    async with aclosing(generation.deltas(services)) as deltas:
        async for index, delta in deltas:
            count += len(delta.tokens)
            frames = b""
            tokens = told(delta.tokens) if generation.wants_logprobs else ()
            if delta.text or tokens:
                logprobs = writers[index].write(tokens) if tokens else None
                frames = event(_answer(generation, (CompletionChoice(index, delta.text, logprobs),), usage))
            if delta.finish_reason is not None:
                last = CompletionChoice(index, "", None, delta.finish_reason)
                frames += event(_answer(generation, (last,), usage))
            if frames:
                yield frames
    if include_usage:
        yield event(_answer(generation, (), generation.usage(count)))
    yield DONE
