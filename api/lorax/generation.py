"""Starts a LoRAX request as a generation and writes its answer, whole or token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import msgspec
from msgspec import UNSET

from motet.api.generating.answer import Answer, collect
from motet.api.generating.chat_prompts import render_chat
from motet.api.generating.chat_template_choice import find_template
from motet.api.generating.checked_request import CheckedRequest, check_request
from motet.api.generating.generation import Generation
from motet.api.generating.logprobs import finite, readable
from motet.api.generating.prompts import completion_prompts
from motet.api.http.caller import Caller
from motet.api.http.sse import event_frame
from motet.api.http.stream_response import Frames
from motet.api.lorax.objects import (
    AlternativeToken,
    LoraxAnswer,
    LoraxDetails,
    LoraxEvent,
    LoraxFinish,
    LoraxSequence,
    LoraxToken,
    PrefillToken,
    StreamDetails,
)
from motet.api.lorax.requests import GenerateParameters, LoraxRequest
from motet.api.lorax.translate import chat_request, completion_request
from motet.api.schema.completion_request import CompletionRequest
from motet.api.services import Services
from motet.core.messages import TokenEvent
from motet.engine.client.text_stream import TextDelta


@dataclass(frozen=True)
class LoraxGeneration:
    """The sequences of a LoRAX request, as many as `best_of` says."""

    generation: Generation
    parameters: GenerateParameters
    inputs: str

    def full_text(self, answer: Answer) -> str:
        """The generated text, after the inputs if the request says so."""
        return (self.inputs if self.parameters.return_full_text else "") + answer.text

    def seed(self, index: int) -> int | None:
        """The seed that sequence number `index` samples with; None if it is greedy."""
        return self.generation.sequences[index].params.seed if self.parameters.samples else None

    def tokens(self, delta: TextDelta) -> list[LoraxToken]:
        """The tokens of a delta; its text is with the last one that is not special, since clients skip special ones."""
        plain = [index for index, event in enumerate(delta.tokens) if not self._is_special(event)]
        last = plain[-1] if plain else len(delta.tokens) - 1
        return [self._token(event, delta.text if index == last else "") for index, event in enumerate(delta.tokens)]

    def prefill(self, delta: TextDelta) -> Iterator[PrefillToken]:
        """The prompt's tokens, which come with the first delta."""
        token_bytes = self.generation.tokenizer.token_bytes
        for event in delta.tokens:
            for entry in event.prompt_logprobs:
                yield PrefillToken(entry.token, readable(token_bytes(entry.token)), entry.logprob)

    def _token(self, event: TokenEvent, shown: str) -> LoraxToken:
        token_bytes = self.generation.tokenizer.token_bytes
        others = [AlternativeToken(id, readable(token_bytes(id)), finite(value)) for id, value in event.top]
        return LoraxToken(
            event.token,
            shown,
            finite(event.logprob),
            self._is_special(event),
            alternative_tokens=others if self.parameters.return_k_alternatives else UNSET,
        )

    def _is_special(self, event: TokenEvent) -> bool:
        return event.stop_id is not None or event.token in self.generation.tokenizer.pieces.special_ids


async def start_lorax(services: Services, body: LoraxRequest, caller: Caller, stream: bool) -> LoraxGeneration:
    """Check and render `body`. Everything that can be refused has been when this returns. Raises MotetError."""
    parameters = body.parameters or GenerateParameters()
    request = completion_request(body.inputs, parameters, stream)
    checked = await check_request(services, request, caller)
    prompt = await _render(checked, request, body)
    max_tokens = parameters.max_new_tokens or checked.context_left(prompt)
    checked = replace(checked, request=msgspec.structs.replace(request, max_tokens=max_tokens))
    return LoraxGeneration(Generation.of(checked, [prompt]), parameters, body.inputs)


async def _render(checked: CheckedRequest, request: CompletionRequest, body: LoraxRequest) -> tuple[int, ...]:
    services = checked.services
    if body.parameters is None or not body.parameters.apply_chat_template:
        return (await completion_prompts(services, request))[0]
    template = await find_template(services, checked.adapter)
    return await render_chat(services, chat_request(body.inputs, request), template, None)


@dataclass
class _Tokens:
    """The tokens of one sequence, for `details`."""

    prefill: list[PrefillToken] = field(default_factory=list)
    generated: list[LoraxToken] = field(default_factory=list)


async def write_whole(lorax: LoraxGeneration) -> LoraxAnswer:
    """The whole answer: the likeliest sequence, with the others in its details. Raises MotetError."""
    tokens = [_Tokens() for _ in lorax.generation.sequences]

    def write_tokens(index: int, delta: TextDelta) -> None:
        if lorax.parameters.details:
            tokens[index].generated += lorax.tokens(delta)
            tokens[index].prefill += lorax.prefill(delta)

    answers = await collect(lorax.generation.deltas(), len(tokens), write_tokens)
    best, *others = sorted(range(len(answers)), key=lambda index: -answers[index].mean_logprob)
    details = _details(lorax, answers, tokens, best, others) if lorax.parameters.details else UNSET
    return LoraxAnswer(generated_text=lorax.full_text(answers[best]), details=details)


def _details(
    lorax: LoraxGeneration, answers: list[Answer], tokens: list[_Tokens], best: int, others: list[int]
) -> LoraxDetails:
    sequences = [
        LoraxSequence(
            generated_text=lorax.full_text(answers[index]),
            finish_reason=_finish_reason(answers[index]),
            generated_tokens=answers[index].tokens,
            seed=lorax.seed(index),
            prefill=tokens[index].prefill,
            tokens=tokens[index].generated,
        )
        for index in others
    ]
    return LoraxDetails(
        finish_reason=_finish_reason(answers[best]),
        prompt_tokens=lorax.generation.prompt_tokens,
        generated_tokens=answers[best].tokens,
        seed=lorax.seed(best),
        prefill=tokens[best].prefill,
        tokens=tokens[best].generated,
        best_of_sequences=sequences or UNSET,
    )


async def write_stream(lorax: LoraxGeneration) -> Frames:
    """The stream: an event per token; the last one has the whole text."""
    answer = Answer()
    async with aclosing(lorax.generation.deltas()) as deltas:
        async for _, delta in deltas:
            answer.add(delta)
            *tokens, last = lorax.tokens(delta)
            events = [LoraxEvent(token=token) for token in tokens]
            if delta.finish_reason is None:
                events.append(LoraxEvent(token=last))
            else:
                details = _stream_details(lorax, answer) if lorax.parameters.details else None
                events.append(LoraxEvent(token=last, generated_text=lorax.full_text(answer), details=details))
            yield b"".join(map(event_frame, events)), delta.more


def _stream_details(lorax: LoraxGeneration, answer: Answer) -> StreamDetails:
    return StreamDetails(
        finish_reason=_finish_reason(answer),
        prompt_tokens=lorax.generation.prompt_tokens,
        generated_tokens=answer.tokens,
        seed=lorax.seed(0),
    )


def _finish_reason(answer: Answer) -> LoraxFinish:
    """LoRAX's word for why an answer ended. Raises MotetError if it has not ended."""
    if answer.finish() == "length":
        return "length"
    return "eos_token" if answer.stop_reason is None else "stop_sequence"
