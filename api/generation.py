"""What every generating route shares: a request that has passed every check, run as one or more sequences at once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec.structs import replace

from motet.api.adapters.messages import ServedAdapter
from motet.api.answers import Usage
from motet.api.caller import Caller
from motet.api.params import check_logprobs, sampling_params, token_limit
from motet.api.schemas import ChatRequest, CompletionRequest
from motet.api.services import Services
from motet.core.errors import MotetError
from motet.core.formats import GrammarSpec
from motet.core.messages import FinishReason, Submit, TokenEvent
from motet.core.models import ModelInfo
from motet.core.sampling import SamplingParams, choice_seed
from motet.engine.client.text_stream import TextDelta, stream_text

T = TypeVar("T")


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
    ref = await services.adapters.name(request.model, request.adapter_source)
    eos = {*model.eos_token_ids, *services.text.eos_token_ids}
    vocab_size = min(model.vocab_size, services.text.vocab_size)
    params = sampling_params(request, services.text.generation, eos, vocab_size)
    grammar = await services.grammars.of(request.response_format, services.plugins.output_formats.items)
    if ref is None:
        return Checked(model, params, grammar, None, caller)
    adapter = await services.adapters.serve(ref, caller.source_token(ref.source, request.api_token))
    own = {*params.eos_token_ids, *adapter.prepared.eos_token_ids}
    return Checked(model, replace(params, eos_token_ids=tuple(sorted(own))), grammar, adapter, caller)


@dataclass(frozen=True)
class Generation:
    """Sequences to run for one request. Sequence n·p + i is choice i of prompt p."""

    id: str
    model: str
    created: int
    submits: tuple[Submit, ...]
    stop: tuple[str, ...]
    prompt_tokens: int
    fingerprint: str
    shown: frozenset[int] = frozenset()
    """Ids of special tokens that are part of the text, for whoever reads it before the caller does."""

    @classmethod
    def of(
        cls,
        services: Services,
        request: ChatRequest | CompletionRequest,
        checked: Checked,
        prompts: Sequence[tuple[int, ...]],
    ) -> Generation:
        """The sequences of `request`. Raises ContextExceeded, or InvalidRequest for too many logprobs."""
        limits = [token_limit(request, len(prompt), checked.model.max_context) for prompt in prompts]
        check_logprobs(request, sum(limits) * (request.n or 1))
        prefix = "chatcmpl" if isinstance(request, ChatRequest) else "cmpl"
        response_id = f"{prefix}-{uuid.uuid4().hex}"
        n, seed = request.n or 1, checked.params.seed
        submits = tuple(
            Submit(
                f"{response_id}-{n * p + i}",
                prompt,
                replace(checked.params, max_tokens=limits[p], seed=choice_seed(seed, i)),
                checked.adapter.prepared.fingerprint if checked.adapter else None,
                checked.grammar,
                group=f"{checked.caller.owner}:{checked.caller.request_id}",
                leader=f"{response_id}-{n * p}" if i else None,
            )
            for p, prompt in enumerate(prompts)
            for i in range(n)
        )
        return cls(
            id=response_id,
            model=request.model,
            created=int(time.time()),
            submits=submits,
            stop=request.stop_strings(),
            prompt_tokens=sum(map(len, prompts)),
            fingerprint=services.fingerprint,
        )

    @property
    def wants_logprobs(self) -> bool:
        """Whether tokens are reported with their logprobs."""
        return self.submits[0].params.logprobs is not None

    def usage(self, completion_tokens: int) -> Usage:
        """The token counts, once the answers are complete."""
        return Usage(self.prompt_tokens, completion_tokens, self.prompt_tokens + completion_tokens)

    async def deltas(self, services: Services) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(sequence number, what it adds) as things come; closing this ends every sequence at once."""
        streams = [
            stream_text(services.engine, services.text, submit, self.stop, self.shown) for submit in self.submits
        ]
        async with aclosing(merge(streams)) as merged:
            async for item in merged:
                yield item


async def merge(
    streams: Sequence[AsyncGenerator[TextDelta, None]],
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """Run `streams` side by side and yield (number, delta) as they come; the first failure ends them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    # What nobody reads must stay with the engine's client, which limits it. Of one place, so that streams take turns.
    queue: asyncio.Queue[tuple[int, TextDelta] | BaseException | None] = asyncio.Queue(1)

    async def pump(index: int, stream: AsyncGenerator[TextDelta, None]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    await queue.put((index, delta))
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
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Output:
    """One sequence's answer, put together."""

    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    finish_reason: FinishReason | None = None

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


async def collect(
    generation: Generation, services: Services, write_logprobs: Callable[[int, Sequence[TokenEvent]], None]
) -> list[Output]:
    """Every sequence's whole answer, in order.

    `write_logprobs` is given each (sequence number, tokens) as they come, if logprobs are wanted: at the end, the
    work for all of them would hold up everybody else.
    """
    outputs = [Output() for _ in generation.submits]
    async with aclosing(generation.deltas(services)) as deltas:
        async for index, delta in deltas:
            output = outputs[index]
            output.texts.append(delta.text)
            output.tokens += len(delta.tokens)
            if generation.wants_logprobs:
                write_logprobs(index, delta.tokens)
            output.finish_reason = delta.finish_reason or output.finish_reason
    return outputs
