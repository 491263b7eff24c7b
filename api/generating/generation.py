"""Submits a checked request with its prompts to the engine as sequences, and streams their text."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from motet.api.generating.adapter_choice import adapter_name
from motet.api.generating.checked_request import CheckedRequest
from motet.api.generating.logprobs import TokenReport
from motet.api.generating.merged_streams import merge
from motet.api.generating.request_params import (
    answer_room,
    check_logprobs,
    check_token_ids,
    priority,
    token_limit,
    truncated,
)
from motet.api.metrics.request_record import RequestRecord
from motet.api.metrics.request_timing import Timing
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.openai_objects import Usage
from motet.core import error_codes
from motet.core.errors import InvalidRequest
from motet.core.messages import AddRequest, TokenEvent
from motet.core.sampling_params import choice_seed
from motet.engine.client.text_stream import TextDelta, stream_text
from motet.engine.client.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Generation:
    """The sequences of one request. Sequence r·p + i is number i of the r sequences of prompt p."""

    id: str
    created: int
    checked: CheckedRequest
    sequences: tuple[AddRequest, ...]
    sequences_per_prompt: int
    prompt_tokens: int
    timing: Timing
    record: RequestRecord
    visible_special_ids: frozenset[int] = frozenset()
    """Ids of special tokens that are part of the text, since a tool parser reads them."""

    @classmethod
    def of(
        cls, checked: CheckedRequest, prompts: Sequence[tuple[int, ...]], response_id: str | None = None
    ) -> Generation:
        """The sequences that answer `prompts`. Raises ContextExceeded, or InvalidRequest for too many logprobs."""
        request, context = checked.request, checked.model.max_context
        _check_grammar_tokens(checked)
        prompts = [truncated(request, prompt, context, answer_room(request, context)) for prompt in prompts]
        limits = [token_limit(request, len(prompt), context) for prompt in prompts]
        per_prompt = (request.best_of if isinstance(request, CompletionRequest) else None) or request.n or 1
        check_logprobs(request, sum(limits) * per_prompt, sum(map(len, prompts)) * per_prompt)
        check_token_ids(request, sum(limits) * per_prompt, sum(map(len, prompts)) * per_prompt)
        if response_id is None:
            response_id = f"{'chatcmpl' if isinstance(request, ChatRequest) else 'cmpl'}-{uuid.uuid4().hex}"
        return cls(
            id=response_id,
            created=int(time.time()),
            checked=checked,
            sequences=_sequences(checked, prompts, limits, per_prompt, response_id),
            sequences_per_prompt=per_prompt,
            prompt_tokens=sum(map(len, prompts)),
            timing=Timing(checked.caller.began),
            record=checked.caller.record,
        )

    @cached_property
    def model(self) -> str:
        """What the request calls the model."""
        return self.checked.request.model

    @cached_property
    def tokenizer(self) -> ModelTokenizer:
        """What tokenises the prompts and answers: the adapter's own tokens, where it has some."""
        return self.checked.services.tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """The answer's `system_fingerprint`."""
        return self.checked.services.fingerprint

    @cached_property
    def wants_logprobs(self) -> bool:
        """Whether the request asks for logprobs."""
        return self.checked.params.logprobs is not None

    @cached_property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.checked.request.include_usage

    @cached_property
    def report(self) -> TokenReport:
        """How the request's tokens are reported."""
        request = self.checked.request
        ids, named_by_id = bool(request.return_token_ids), bool(request.return_tokens_as_token_ids)
        # For an echo alone, the one token that the engine generates is not part of the answer.
        return TokenReport(ids, named_by_id, (ids or named_by_id) and request.max_tokens != 0)

    def limited(self, max_tokens: int) -> Generation:
        """The same sequences, with answers of at most `max_tokens`, if that is less than their present limit."""
        sequences = (
            replace(s, params=replace(s.params, max_tokens=min(s.params.max_tokens, max_tokens)))
            for s in self.sequences
        )
        return dataclasses.replace(self, sequences=tuple(sequences))

    def token_ids(self, tokens: Iterable[TokenEvent]) -> list[int] | UnsetType:
        """The ids of `tokens`, if the request asks for ids."""
        return [event.token for event in self.report.reported(tokens)] if self.report.ids else UNSET

    def prompt_ids(self, index: int) -> tuple[int, ...] | UnsetType:
        """The prompt of sequence `index`, if the request asks for ids."""
        return self.sequences[index].prompt if self.report.ids else UNSET

    def usage(self, completion_tokens: int) -> Usage:
        """The token counts, once the answers are complete."""
        return Usage(self.prompt_tokens, completion_tokens, self.prompt_tokens + completion_tokens)

    async def deltas(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(sequence number, delta) as they arrive; closing this ends every sequence at once."""
        async with aclosing(merge(self.streams())) as merged:
            async for indexed in merged:
                yield indexed

    def streams(self) -> list[AsyncGenerator[TextDelta, None]]:
        """Each sequence's deltas, submitted when they are first read; closing a stream ends its sequence."""
        self.record.timing, self.record.prompt_tokens = self.timing, self.prompt_tokens
        return [self._stream(index) for index in range(len(self.sequences))]

    async def _stream(self, index: int) -> AsyncGenerator[TextDelta, None]:
        engine, stop = self.checked.services.engine, self.checked.request.stop_strings()
        async with aclosing(
            stream_text(engine, self.tokenizer, self.sequences[index], stop, self.visible_special_ids)
        ) as deltas:
            async for delta in deltas:
                self.timing.add(index, delta)
                yield _without_stop_string(delta)


def _check_grammar_tokens(checked: CheckedRequest) -> None:
    """Raise InvalidRequest where the adapter renames tokens that the request's grammar may need."""
    renamed = checked.services.tokenizer.renamed_words
    if checked.grammar is not None and renamed:
        raise InvalidRequest(
            f"this adapter cannot follow a grammar: it renames {renamed[0]!r}, a token that the base model "
            "writes text with",
            param="response_format" if checked.request.response_format else "tools",
            code=error_codes.UNSUPPORTED_PARAMETER,
        )


def _sequences(
    checked: CheckedRequest,
    prompts: Sequence[tuple[int, ...]],
    limits: Sequence[int],
    per_prompt: int,
    response_id: str,
) -> tuple[AddRequest, ...]:
    request, params = checked.request, checked.params
    ranked = per_prompt > (request.n or 1)

    def sequence(p: int, i: int) -> AddRequest:
        own = replace(
            params,
            max_tokens=max(limits[p], 1),  # for an echo alone, the one token is dropped
            # Equal prompts get different seeds, unless the request has a seed.
            seed=choice_seed(params.seed, i if request.seed is not None else per_prompt * p + i),
            logprobs=0 if ranked and params.logprobs is None else params.logprobs,
        )
        return AddRequest(
            f"{response_id}-{per_prompt * p + i}",
            prompts[p],
            own,
            checked.adapter.prepared.fingerprint if checked.adapter else None,
            checked.grammar,
            group=f"{checked.caller.owner}:{checked.caller.request_id}",
            prefix_of=f"{response_id}-{per_prompt * p}" if i else None,
            priority=priority(request, checked.caller),
            model=adapter_name(request),
        )

    return tuple(sequence(p, i) for p in range(len(prompts)) for i in range(per_prompt))


def _without_stop_string(delta: TextDelta) -> TextDelta:
    """The same delta; tokens of nothing but the stop string count as what ended the text, and are not reported."""
    if not delta.cut:
        return delta
    visible, ended = delta.tokens[: -delta.cut], delta.tokens[-delta.cut :]
    return replace(delta, tokens=(*visible, *unreported(ended)))


def unreported(tokens: Iterable[TokenEvent]) -> tuple[TokenEvent, ...]:
    """The same tokens, marked as what ended a text: they are counted and not reported."""
    return tuple(replace(event, stop_id=event.token) for event in tokens)
