"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.answers import ENCODER, Completion, CompletionChoice, CompletionLogprobs, Usage
from motet.api.body import read_body
from motet.api.caller import Caller, current_caller
from motet.api.generation import Generation, check, collect
from motet.api.logprobs import CompletionLogprobsWriter, packed, told
from motet.api.operations import ERRORS, TOKEN, Operation
from motet.api.parsing import parse_completion
from motet.api.prompts import completion_prompts
from motet.api.schemas import CompletionRequest
from motet.api.services import Services
from motet.api.sse import DONE, event, stream_response
from motet.api.unsupported import COMPLETIONS
from motet.core.messages import TokenEvent

OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "Continue a text",
        "generate",
        Completion,
        body=CompletionRequest,
        chunk=Completion,
        example={"model": "", "prompt": "Once upon a time", "max_tokens": 16},
        refused=COMPLETIONS,
        errors=tuple(ERRORS),
        parameters=(TOKEN,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("completions", __name__)

    @blueprint.post("/v1/completions")
    async def completions() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_completion)
            if not request.stream:
                answer = await answer_completion(services, request, current_caller())
                return Response(ENCODER.encode(answer), content_type="application/json")
            generation = await start_completion(services, request, current_caller())
            events = completion_events(generation, services, request.include_usage)
            return await stream_response(events, services.drain)

    return blueprint


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


async def start_completion(services: Services, request: CompletionRequest, caller: Caller) -> Generation:
    """Everything that can be refused before work starts has been, once this returns. Raises MotetError."""
    checked = await check(services, request, caller)
    prompts = await completion_prompts(services, request, checked.model)
    return Generation.of(services, request, checked, prompts)


async def answer_completion(services: Services, request: CompletionRequest, caller: Caller) -> Completion:
    """The whole answer to `request`. Raises MotetError."""
    generation = await start_completion(services, request, caller)
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
