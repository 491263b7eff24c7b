"""What every generating route shares: a request that has passed every check, run as one or more sequences at once."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from motet.api.adapters.messages import ServedAdapter
from motet.api.generating.adapter_choice import adapter_name, chosen_adapter
from motet.api.generating.logprobs import TokenReport
from motet.api.generating.response_headers import labels, timing_headers
from motet.api.generating.sampling_params import (
    check_logprobs,
    check_token_ids,
    priority,
    sampling_params,
    token_limit,
    truncated,
    wanted_room,
)
from motet.api.http.caller import Caller
from motet.api.metrics.request_record import RequestRecord
from motet.api.metrics.timing import Timing
from motet.api.schema.objects import Usage
from motet.api.schema.requests import ChatRequest, CompletionRequest
from motet.api.services import Services
from motet.core.errors import InvalidRequest, MotetError
from motet.core.messages import AddRequest, FinishReason, TokenEvent
from motet.core.models import ModelInfo
from motet.core.output_formats import GrammarSpec
from motet.core.sampling_params import SamplingParams, choice_seed
from motet.engine.client.text_model import TextModel
from motet.engine.client.text_stream import TextDelta, stream_text

T = TypeVar("T")


class Delta(Protocol):
    """What one sequence adds."""

    @property
    def more(self) -> bool:
        """Whether the next delta is there already."""


D = TypeVar("D", bound=Delta)


@dataclass(frozen=True)
class Checked:
    """What is known of a request before its prompt is: everything that can be refused cheaply has been."""

    model: ModelInfo
    params: SamplingParams
    grammar: GrammarSpec | None
    adapter: ServedAdapter | None
    caller: Caller


async def check(services: Services, request: ChatRequest | CompletionRequest, caller: Caller) -> Checked:
    """Find the adapter (the slow part, and so the last) and settle the parameters. Raises MotetError."""
    model = services.model()
    priority(request, caller)
    eos = {*model.eos_token_ids, *services.text.eos_token_ids}
    vocab_size = min(model.vocab_size, services.text.vocab_size)
    params = sampling_params(request, services.text.generation, eos, vocab_size)
    grammar = await services.grammars.of(request.response_format, services.plugins.output_formats.items, caller.flow)
    adapter = await chosen_adapter(services, request, caller)
    if adapter is None:
        return Checked(model, params, grammar, None, caller)
    text = services.for_request(adapter, caller).text
    own = {*params.eos_token_ids, *adapter.prepared.eos_token_ids, *text.eos_token_ids}
    return Checked(model, replace(params, eos_token_ids=tuple(sorted(own))), grammar, adapter, caller)


def _text_model(services: Services, request: ChatRequest | CompletionRequest, checked: Checked) -> TextModel:
    """The text side of the request's adapter. Raises InvalidRequest where a grammar would be of other tokens."""
    text = services.for_request(checked.adapter, checked.caller).text
    if checked.grammar is not None and text.renamed_words:
        raise InvalidRequest(
            f"answers of this adapter cannot follow a grammar: its token {text.renamed_words[0]!r} is one that the "
            "base model writes text with",
            param="response_format" if request.response_format else "tools",
            code="unsupported_parameter",
        )
    return text


@dataclass(frozen=True)
class Generation:
    """Sequences to run for one request. Sequence r·p + i is run i of prompt p, of r runs for each."""

    id: str
    model: str
    created: int
    submits: tuple[AddRequest, ...]
    stop: tuple[str, ...]
    prompt_tokens: int
    fingerprint: str
    runs: int
    wants_logprobs: bool
    timing: Timing
    labels: Mapping[str, str]
    report: TokenReport
    record: RequestRecord
    text: TextModel
    """What the prompts and answers are tokenised with: the adapter's own tokens, where it has some."""

    shown: frozenset[int] = frozenset()
    """Ids of special tokens that are part of the text, for whoever reads it before the caller does."""

    @classmethod
    def of(
        cls,
        services: Services,
        request: ChatRequest | CompletionRequest,
        checked: Checked,
        prompts: Sequence[tuple[int, ...]],
        response_id: str | None = None,
    ) -> Generation:
        """The sequences of `request`. Raises ContextExceeded, or InvalidRequest for too many logprobs."""
        text = _text_model(services, request, checked)
        context = checked.model.max_context
        prompts = [truncated(request, prompt, context, wanted_room(request, context)) for prompt in prompts]
        limits = [token_limit(request, len(prompt), context) for prompt in prompts]
        runs = (request.best_of if isinstance(request, CompletionRequest) else None) or request.n or 1
        check_logprobs(request, sum(limits) * runs, sum(map(len, prompts)) * runs)
        check_token_ids(request, sum(limits) * runs, sum(map(len, prompts)) * runs)
        if response_id is None:
            response_id = f"{'chatcmpl' if isinstance(request, ChatRequest) else 'cmpl'}-{uuid.uuid4().hex}"
        params, ranked = checked.params, runs > (request.n or 1)
        wants_logprobs = params.logprobs is not None

        def submit(p: int, i: int) -> AddRequest:
            own = replace(
                params,
                max_tokens=max(limits[p], 1),  # for an echo alone, the one token is dropped
                # Copies of a prompt are told apart, unless a seed was asked for.
                seed=choice_seed(params.seed, i if request.seed is not None else runs * p + i),
                logprobs=0 if ranked and not wants_logprobs else params.logprobs,
            )
            return AddRequest(
                f"{response_id}-{runs * p + i}",
                prompts[p],
                own,
                checked.adapter.prepared.fingerprint if checked.adapter else None,
                checked.grammar,
                group=f"{checked.caller.owner}:{checked.caller.request_id}",
                prefix_of=f"{response_id}-{runs * p}" if i else None,
                priority=priority(request, checked.caller),
                model=adapter_name(request),
            )

        submits = tuple(submit(p, i) for p in range(len(prompts)) for i in range(runs))
        return cls(
            id=response_id,
            model=request.model,
            created=int(time.time()),
            submits=submits,
            stop=request.stop_strings(),
            prompt_tokens=sum(map(len, prompts)),
            fingerprint=services.fingerprint,
            runs=runs,
            wants_logprobs=wants_logprobs,
            timing=Timing(checked.caller.began),
            labels=labels(checked.model, request, checked.adapter),
            text=text,
            report=_report(request),
            record=checked.caller.record,
        )

    def limited(self, max_tokens: int) -> Generation:
        """The same sequences, with answers of at most `max_tokens`, if that is less than their limit so far."""
        submits = (
            replace(s, params=replace(s.params, max_tokens=min(s.params.max_tokens, max_tokens))) for s in self.submits
        )
        return dataclasses.replace(self, submits=tuple(submits))

    def ids(self, tokens: Iterable[TokenEvent]) -> list[int] | UnsetType:
        """The ids of `tokens`, if the request asked for ids."""
        return [event.token for event in self.report.reported(tokens)] if self.report.ids else UNSET

    def prompt_ids(self, index: int) -> tuple[int, ...] | UnsetType:
        """The prompt of sequence `index`, if the request asked for ids."""
        return self.submits[index].prompt if self.report.ids else UNSET

    def usage(self, completion_tokens: int) -> Usage:
        """The token counts, once the answers are complete."""
        return Usage(self.prompt_tokens, completion_tokens, self.prompt_tokens + completion_tokens)

    def headers(self, characters: int) -> dict[str, str]:
        """The response headers of a whole answer of `characters`."""
        return {**self.labels, **timing_headers(self.timing, self.prompt_tokens, characters)}

    async def deltas(self, services: Services) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(sequence number, what it adds) as things come; closing this ends every sequence at once."""
        async with aclosing(merge(self.streams(services))) as merged:
            async for indexed in merged:
                yield indexed

    def streams(self, services: Services) -> list[AsyncGenerator[TextDelta, None]]:
        """What each sequence adds as it comes; closing one ends its sequence."""
        self.record.timing, self.record.prompt_tokens = self.timing, self.prompt_tokens
        return [self._stream(services, index) for index in range(len(self.submits))]

    async def _stream(self, services: Services, index: int) -> AsyncGenerator[TextDelta, None]:
        stream = stream_text(services.engine, self.text, self.submits[index], self.stop, self.shown)
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                self.timing.take(index, delta)
                yield _without_stop_string(delta)


def _report(request: ChatRequest | CompletionRequest) -> TokenReport:
    ids, named_by_id = bool(request.return_token_ids), bool(request.return_tokens_as_token_ids)
    # For an echo alone, the one token that the engine makes is no part of the answer.
    return TokenReport(ids, named_by_id, (ids or named_by_id) and request.max_tokens != 0)


def _without_stop_string(delta: TextDelta) -> TextDelta:
    """The same delta; tokens that are nothing but the stop string count as what ended the text, which is not shown."""
    if not delta.cut:
        return delta
    kept, ended = delta.tokens[: -delta.cut], delta.tokens[-delta.cut :]
    return replace(delta, tokens=(*kept, *unreported(ended)))


def unreported(tokens: Iterable[TokenEvent]) -> tuple[TokenEvent, ...]:
    """The same tokens, as what ended a text: they count, and nobody is told of them."""
    return tuple(replace(event, stop_id=event.token) for event in tokens)


async def merge(streams: Sequence[AsyncGenerator[D, None]]) -> AsyncGenerator[tuple[int, D], None]:
    """Run `streams` side by side and yield (number, delta) as they come; the first failure ends them all.

    Deltas of one stream that are there together come one after another, with nothing between them.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    # What nobody reads must stay with the engine's client, which limits it. Of one place, so that streams take turns.
    queue: asyncio.Queue[tuple[int, list[D]] | Exception | None] = asyncio.Queue(1)

    async def pump(index: int, stream: AsyncGenerator[D, None]) -> None:
        together: list[D] = []
        try:
            async with aclosing(stream):
                async for delta in stream:
                    together.append(delta)
                    if not delta.more:
                        await queue.put((index, together))
                        together = []
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                for delta in item[1]:
                    yield item[0], delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Output:
    """One sequence's answer, put together."""

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: float = 0.0
    finish_reason: FinishReason | None = None

    def add(self, delta: TextDelta) -> None:
        """Take the next delta in."""
        self.texts.append(delta.text)
        self.ids += [event.token for event in delta.tokens]
        self.logprobs += sum(event.logprob or 0.0 for event in delta.tokens)
        self.finish_reason = delta.finish_reason or self.finish_reason

    def mean_logprob(self) -> float:
        """How likely its tokens were, on the average; 0 where logprobs are not known."""
        return self.logprobs / max(self.tokens, 1)

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)

    def finish(self) -> FinishReason:
        """Why it ended. Raises MotetError if it never did."""
        return finished(self.finish_reason)


def finished(reason: T | None) -> T:
    """The reason why a sequence ended. Raises MotetError if it never did."""
    if reason is None:
        raise MotetError("the engine's answer broke off")
    return reason
