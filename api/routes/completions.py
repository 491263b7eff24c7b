"""POST /v1/completions: OpenAI's JSON around a generation (`api/generating/completion_generation.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import cast

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.generating.answer import Answer, collect
from motet.api.generating.completion_generation import CompletionGeneration, start_completion
from motet.api.generating.generation import Generation
from motet.api.generating.logprobs import packed
from motet.api.http.caller import Caller, current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.http.sse import DONE, event_frame
from motet.api.http.stream_response import Frames, joined, stream_response
from motet.api.routes.response_headers import answer_headers
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.openai_objects import Completion, CompletionChoice, CompletionLogprobs, Usage
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import parse_completion
from motet.api.schema.unsupported_fields import COMPLETIONS
from motet.api.services import Services
from motet.core.messages import FinishReason
from motet.engine.client.text_stream import TextDelta

OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "Continue a text",
        "generate",
        Completion,
        body=CompletionRequest,
        event=Completion,
        example={"model": "", "prompt": "Once upon a time", "max_tokens": 16},
        unsupported=COMPLETIONS,
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("completions", __name__)

    @blueprint.post("/v1/completions")
    async def completions() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_completion)
            started = await start_completion(services, request, current_caller())
            if request.stream:
                return await stream_response(joined(write_stream(started)), services.drain)
            completion = await write_whole(started)
            headers = answer_headers(started.generation, sum(len(choice.text) for choice in completion.choices))
            return json_response(completion, headers=headers)

    return blueprint


async def answer_completion(services: Services, request: CompletionRequest, caller: Caller) -> Completion:
    """The whole answer to `request`. Raises MotetError."""
    return await write_whole(await start_completion(services, request, caller))


async def write_whole(completion: CompletionGeneration) -> Completion:
    """The whole answer. Raises MotetError."""
    generation = completion.generation
    writers = completion.logprobs_writers()
    logprobs = [CompletionLogprobs([], [], [], []) if generation.wants_logprobs else None for _ in writers]

    def write_logprobs(index: int, delta: TextDelta) -> None:
        if (written := logprobs[index]) is not None:
            _append(written, writers[index].write(delta.tokens))

    answers = await collect(completion.deltas(), len(writers), write_logprobs)
    choices = tuple(
        CompletionChoice(
            number,
            completion.echo(i).text + answers[i].text,
            logprobs[i],
            cast(FinishReason, answers[i].finish()),  # a text does not end with tool calls
            generation.prompt_ids(i),
            answers[i].token_ids[: 0 if completion.echo_only else None] if generation.report.ids else UNSET,
        )
        for number, i in enumerate(_likeliest(answers, generation.sequences_per_prompt, completion.choices))
    )
    count = 0 if completion.echo_only else sum(answer.tokens for answer in answers)
    return _completion(generation, choices, generation.usage(count))


def _append(written: CompletionLogprobs, new: CompletionLogprobs) -> None:
    written.text_offset.extend(new.text_offset)
    written.token_logprobs.extend(new.token_logprobs)
    written.tokens.extend(new.tokens)
    written.top_logprobs.extend(map(packed, new.top_logprobs))


def _likeliest(answers: Sequence[Answer], per_prompt: int, choices: int) -> list[int]:
    """The numbers of the `choices` answers to each prompt with the highest mean logprob, best first.

    All in their order if all are answered.
    """
    if per_prompt == choices:
        return list(range(len(answers)))
    prompts = (range(first, first + per_prompt) for first in range(0, len(answers), per_prompt))
    ranked = (sorted(prompt, key=lambda i: -answers[i].mean_logprob) for prompt in prompts)
    return [i for prompt in ranked for i in prompt[:choices]]


async def write_stream(completion: CompletionGeneration) -> Frames:
    """The stream: text, each choice's finish; then usage, if requested; then [DONE]."""
    generation = completion.generation
    usage = None if generation.include_usage else UNSET
    writers = completion.logprobs_writers()
    echoes = [completion.echo(index).text for index in range(len(writers))]
    prompt_ids = [generation.prompt_ids(index) for index in range(len(writers))]
    count = 0
    async with aclosing(completion.deltas()) as deltas:
        async for index, delta in deltas:
            frames = b""
            count += 0 if completion.echo_only else len(delta.tokens)
            text, echoes[index] = echoes[index] + delta.text, ""
            logprobs = writers[index].write(delta.tokens) if generation.wants_logprobs else None
            if logprobs is not None and not logprobs.tokens:
                logprobs = None
            ids = generation.token_ids(delta.tokens) or UNSET
            if text or ids or prompt_ids[index] or logprobs is not None:
                choice = CompletionChoice(index, text, logprobs, None, prompt_ids[index], ids)
                frames += event_frame(_completion(generation, (choice,), usage))
                prompt_ids[index] = UNSET
            if delta.finish_reason is not None:
                last = CompletionChoice(index, "", None, delta.finish_reason)
                frames += event_frame(_completion(generation, (last,), usage))
            yield frames, delta.more
    if generation.include_usage:
        yield event_frame(_completion(generation, (), generation.usage(count))), False
    yield DONE, False


def _completion(
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
