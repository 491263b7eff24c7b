"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.generating.generation import Generation, Output, check, unreported
from motet.api.generating.logprobs import CompletionLogprobsWriter, Echo, echo_offsets, packed
from motet.api.generating.prompts import completion_prompts, prompt_texts
from motet.api.http.body import read_body
from motet.api.http.caller import Caller, current_caller
from motet.api.http.sse import DONE, event, stream_response
from motet.api.schema.objects import ENCODER, Completion, CompletionChoice, CompletionLogprobs, Usage
from motet.api.schema.operations import ERRORS, TOKEN, Operation
from motet.api.schema.parsing import parse_completion
from motet.api.schema.requests import CompletionRequest
from motet.api.schema.unsupported_fields import COMPLETIONS
from motet.api.services import Services
from motet.engine.client.text_stream import TextDelta

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
        errors=ERRORS,
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
            run = await CompletionRun.start(services, request, current_caller())
            if not request.stream:
                answer = await _whole(services, run)
                texts = (choice.text for choice in answer.choices)
                headers = run.generation.headers(sum(map(len, texts)))
                return Response(ENCODER.encode(answer), headers=headers, content_type="application/json")
            events = completion_events(run, services, request.include_usage)
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


@dataclass(frozen=True)
class CompletionRun:
    """A completion request's sequences, and what goes with them: the prompts to echo, the choices to answer with."""

    generation: Generation
    echoes: tuple[Echo, ...]
    choices: int
    silent: bool

    @classmethod
    async def start(cls, services: Services, request: CompletionRequest, caller: Caller) -> CompletionRun:
        """Everything that can be refused before work starts has been, once this returns. Raises MotetError."""
        checked = await check(services, request, caller)
        services = services.for_request(checked.adapter, caller)
        prompts = await completion_prompts(services, request)
        generation = Generation.of(services, request, checked, prompts)
        kept = [submit.prompt for submit in generation.submits[:: generation.runs]]
        echoes = await _echoes(services, request, kept) if request.echo else [Echo()] * len(kept)
        return cls(generation, tuple(echoes), request.n or 1, request.max_tokens == 0)

    def echo(self, index: int) -> Echo:
        """What run number `index` begins with."""
        return self.echoes[index // self.generation.runs]

    def writers(self) -> list[CompletionLogprobsWriter]:
        """What writes the logprobs of each run."""
        submits, report = enumerate(self.generation.submits), self.generation.report
        return [
            CompletionLogprobsWriter(self.generation.text, submit.prompt, self.echo(i), report) for i, submit in submits
        ]

    async def deltas(self, services: Services) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(run, what it adds) as things come. Where nothing was asked for but an echo, the one token is not told."""
        async with aclosing(self.generation.deltas(services)) as deltas:
            async for index, delta in deltas:
                if self.silent:
                    delta = TextDelta("", unreported(delta.tokens), delta.finish_reason and "length", more=delta.more)
                yield index, delta


async def _echoes(services: Services, request: CompletionRequest, prompts: Sequence[tuple[int, ...]]) -> list[Echo]:
    """The echo of each prompt; where its tokens begin is worked out if somebody wants to know."""
    texts, given = prompt_texts(services, request, prompts)
    if request.logprobs is None:
        return [Echo(text) for text in texts]
    echoes = []
    for text, prompt in zip(texts, prompts, strict=True):
        echoes.append(Echo(text, echo_offsets(services.text, prompt, text if given else None)))
        await asyncio.sleep(0)  # a long prompt takes milliseconds
    return echoes


async def answer_completion(services: Services, request: CompletionRequest, caller: Caller) -> Completion:
    """The whole answer to `request`. Raises MotetError."""
    return await _whole(services, await CompletionRun.start(services, request, caller))


async def _whole(services: Services, run: CompletionRun) -> Completion:
    generation = run.generation
    wanted = generation.wants_logprobs
    writers = run.writers()
    logprobs = [CompletionLogprobs([], [], [], []) if wanted else None for _ in writers]
    outputs = [Output() for _ in writers]
    async with aclosing(run.deltas(services)) as deltas:
        async for index, delta in deltas:
            outputs[index].add(delta)
            if (written := logprobs[index]) is not None:
                _append(written, writers[index].write(delta.tokens))
    choices = tuple(
        CompletionChoice(
            number,
            run.echo(i).text + outputs[i].text,
            logprobs[i],
            outputs[i].finish(),
            generation.prompt_ids(i),
            outputs[i].ids[: 0 if run.silent else None] if generation.report.ids else UNSET,
        )
        for number, i in enumerate(_likeliest(outputs, generation.runs, run.choices))
    )
    made = 0 if run.silent else sum(output.tokens for output in outputs)
    return _answer(generation, choices, generation.usage(made))


def _append(written: CompletionLogprobs, new: CompletionLogprobs) -> None:
    written.text_offset.extend(new.text_offset)
    written.token_logprobs.extend(new.token_logprobs)
    written.tokens.extend(new.tokens)
    written.top_logprobs.extend(map(packed, new.top_logprobs))


def _likeliest(outputs: Sequence[Output], runs: int, choices: int) -> list[int]:
    """Of each prompt's runs, the numbers of those whose tokens are likeliest on the average; all if all are wanted."""
    if runs == choices:
        return list(range(len(outputs)))
    prompts = (range(first, first + runs) for first in range(0, len(outputs), runs))
    ranked = (sorted(prompt, key=lambda i: -outputs[i].mean_logprob()) for prompt in prompts)
    return [i for prompt in ranked for i in prompt[:choices]]


async def completion_events(run: CompletionRun, services: Services, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The stream: text, each choice's finish; then usage, if it is wanted; then [DONE]."""
    generation = run.generation
    usage = None if include_usage else UNSET
    writers = run.writers()
    echoes = [run.echo(index).text for index in range(len(writers))]
    prompt_ids = [generation.prompt_ids(index) for index in range(len(writers))]
    count, frames = 0, b""
    async with aclosing(run.deltas(services)) as deltas:
        async for index, delta in deltas:
            count += 0 if run.silent else len(delta.tokens)
            text, echoes[index] = echoes[index] + delta.text, ""
            logprobs = writers[index].write(delta.tokens) if generation.wants_logprobs else None
            ids = generation.ids(delta.tokens) or UNSET
            if text or ids or prompt_ids[index] or (logprobs is not None and logprobs.tokens):
                told = logprobs if logprobs is not None and logprobs.tokens else None
                choice = CompletionChoice(index, text, told, None, prompt_ids[index], ids)
                frames += event(_answer(generation, (choice,), usage))
                prompt_ids[index] = UNSET
            if delta.finish_reason is not None:
                last = CompletionChoice(index, "", None, delta.finish_reason)
                frames += event(_answer(generation, (last,), usage))
            if frames and not delta.more:
                yield frames
                frames = b""
    if include_usage:
        yield event(_answer(generation, (), generation.usage(count)))
    yield DONE
