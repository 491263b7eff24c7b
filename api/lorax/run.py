"""A LoRAX request, checked and running; its answer whole, or token by token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec import UNSET
from msgspec.structs import replace

from motet.api.generating.chat_prompts import chat_prompt, find_template
from motet.api.generating.generation import Checked, Generation, check, finished
from motet.api.generating.logprobs import finite, readable
from motet.api.generating.prompts import completion_prompts
from motet.api.generating.sampling_params import truncated
from motet.api.http.caller import Caller
from motet.api.lorax.objects import (
    AlternativeToken,
    NativeAnswer,
    NativeDetails,
    NativeEvent,
    NativeFinish,
    NativeSequence,
    NativeToken,
    PrefillToken,
    StreamDetails,
)
from motet.api.lorax.requests import GenerateParameters, NativeRequest
from motet.api.lorax.translate import chat_request, completion_request
from motet.api.schema.requests import CompletionRequest
from motet.api.services import Services
from motet.core.messages import TokenEvent
from motet.engine.client.text_model import TextModel
from motet.engine.client.text_stream import TextDelta


@dataclass
class _Sequence:
    """One answer, put together."""

    texts: list[str] = field(default_factory=list)
    tokens: list[NativeToken] = field(default_factory=list)
    prefill: list[PrefillToken] = field(default_factory=list)
    count: int = 0
    logprobs: float = 0.0
    reason: NativeFinish | None = None

    @property
    def finish(self) -> NativeFinish:
        """Why it ended. Raises MotetError if it never did."""
        return finished(self.reason)


@dataclass(frozen=True)
class NativeRun:
    """One LoRAX request's sequences, as many as `best_of` asks for."""

    generation: Generation
    parameters: GenerateParameters
    inputs: str

    @classmethod
    async def start(cls, services: Services, body: NativeRequest, caller: Caller, stream: bool) -> NativeRun:
        """Everything that can be refused before work starts has been, once this returns. Raises MotetError."""
        parameters = body.parameters or GenerateParameters()
        request = completion_request(body.inputs, parameters, stream)
        checked = await check(services, request, caller)
        services = services.for_request(checked.adapter, caller)
        prompt = await _prompt(services, body.inputs, parameters, request, checked)
        kept = truncated(request, prompt, checked.model.max_context)
        room = max(checked.model.max_context - len(kept), 1)
        request = replace(request, max_tokens=parameters.max_new_tokens or room)
        generation = Generation.of(services, request, checked, [prompt])
        return cls(generation, parameters, body.inputs)

    async def answer(self, services: Services) -> tuple[NativeAnswer, Mapping[str, str]]:
        """The whole answer, and its headers."""
        sequences = [_Sequence() for _ in self.generation.submits]
        async with aclosing(self.generation.deltas(services)) as deltas:
            async for index, delta in deltas:
                self._add(sequences[index], delta, self.generation.text)
        ranked = sorted(range(len(sequences)), key=lambda i: -sequences[i].logprobs / max(sequences[i].count, 1))
        best, *others = ranked
        answer = NativeAnswer(
            generated_text=self._text(sequences[best]),
            details=self._details(sequences, best, others) if self.parameters.details else UNSET,
        )
        return answer, self.generation.headers(len(self.inputs))

    def _add(self, sequence: _Sequence, delta: TextDelta, text: TextModel) -> None:
        sequence.texts.append(delta.text)
        sequence.count += len(delta.tokens)
        sequence.logprobs += sum(event.logprob or 0.0 for event in delta.tokens)
        if self.parameters.details:
            sequence.tokens += self.tokens(delta, text)
            for event in delta.tokens:
                sequence.prefill += [
                    PrefillToken(score.token, readable(text.token_bytes(score.token)), score.logprob)
                    for score in event.prompt_logprobs
                ]
        if delta.finish_reason is not None:
            sequence.reason = finish_reason(delta)

    def _text(self, sequence: _Sequence) -> str:
        return (self.inputs if self.parameters.return_full_text else "") + "".join(sequence.texts)

    def _details(self, sequences: list[_Sequence], best: int, others: list[int]) -> NativeDetails:
        first = sequences[best]
        rest = [
            NativeSequence(
                generated_text=self._text(sequences[index]),
                finish_reason=sequences[index].finish,
                generated_tokens=sequences[index].count,
                seed=self.seed(index),
                prefill=sequences[index].prefill,
                tokens=sequences[index].tokens,
            )
            for index in others
        ]
        return NativeDetails(
            finish_reason=first.finish,
            prompt_tokens=self.generation.prompt_tokens,
            generated_tokens=first.count,
            seed=self.seed(best),
            prefill=first.prefill,
            tokens=first.tokens,
            best_of_sequences=rest or UNSET,
        )

    def seed(self, index: int) -> int | None:
        """What run number `index` drew its tokens with."""
        return self.generation.submits[index].params.seed if self.parameters.samples else None

    def tokens(self, delta: TextDelta, text: TextModel) -> list[NativeToken]:
        """The tokens of a delta; its text is with the last one that is not special, for clients leave those out."""
        plain = [index for index, event in enumerate(delta.tokens) if not _special(event, text)]
        last = plain[-1] if plain else len(delta.tokens) - 1
        return [
            self._token(event, delta.text if index == last else "", text) for index, event in enumerate(delta.tokens)
        ]

    def _token(self, event: TokenEvent, shown: str, text: TextModel) -> NativeToken:
        asked = self.parameters.return_k_alternatives
        others = [AlternativeToken(id, readable(text.token_bytes(id)), finite(value)) for id, value in event.top]
        return NativeToken(
            event.token,
            shown,
            finite(event.logprob),
            _special(event, text),
            alternative_tokens=others if asked else UNSET,
        )

    async def events(self, services: Services) -> AsyncGenerator[list[NativeEvent], None]:
        """An event a token, all that have come each time; the last one has the whole text."""
        sequence, events = _Sequence(), list[NativeEvent]()
        async with aclosing(self.generation.deltas(services)) as deltas:
            async for _, delta in deltas:
                sequence.texts.append(delta.text)
                sequence.count += len(delta.tokens)
                *tokens, last = self.tokens(delta, self.generation.text)
                events += [NativeEvent(token=token) for token in tokens]
                if delta.finish_reason is None:
                    events.append(NativeEvent(token=last))
                else:
                    sequence.reason = finish_reason(delta)
                    whole = self._text(sequence)
                    events.append(NativeEvent(token=last, generated_text=whole, details=self._end(sequence)))
                if not delta.more:
                    yield events
                    events = []

    def _end(self, sequence: _Sequence) -> StreamDetails | None:
        if not self.parameters.details:
            return None
        return StreamDetails(
            finish_reason=sequence.finish,
            prompt_tokens=self.generation.prompt_tokens,
            generated_tokens=sequence.count,
            seed=self.seed(0),
        )


def _special(event: TokenEvent, text: TextModel) -> bool:
    return event.stop_id is not None or event.token in text.pieces.special_ids


def finish_reason(delta: TextDelta) -> NativeFinish:
    """LoRAX's word for why a text ended."""
    if delta.finish_reason == "length":
        return "length"
    return "eos_token" if delta.stop_reason is None else "stop_sequence"


async def _prompt(
    services: Services, inputs: str, parameters: GenerateParameters, request: CompletionRequest, checked: Checked
) -> tuple[int, ...]:
    if not parameters.apply_chat_template:
        return (await completion_prompts(services, request))[0]
    template = await find_template(services, checked.adapter)
    return await chat_prompt(services, chat_request(inputs, request), template, None)
