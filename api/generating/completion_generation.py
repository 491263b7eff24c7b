"""Streams a completion request: the deltas of its sequences, and the prompts that they echo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from motet.api.generating.checked_request import check_request
from motet.api.generating.generation import Generation, unreported
from motet.api.generating.logprobs import CompletionLogprobsWriter, Echo, echo_offsets
from motet.api.generating.prompts import completion_prompts, prompt_texts
from motet.api.http.caller import Caller
from motet.api.schema.completion_request import CompletionRequest
from motet.api.services import Services
from motet.engine.client.text_stream import TextDelta


@dataclass(frozen=True)
class CompletionGeneration:
    """The sequences of a completion request, `choices` of which are answered per prompt.

    With `echo_only`, the answers are the echoed prompts and nothing else.
    """

    generation: Generation
    echoes: tuple[Echo, ...]
    choices: int
    echo_only: bool

    def echo(self, index: int) -> Echo:
        """What sequence number `index` begins with."""
        return self.echoes[index // self.generation.sequences_per_prompt]

    def logprobs_writers(self) -> list[CompletionLogprobsWriter]:
        """What writes the logprobs of each sequence."""
        tokenizer, report = self.generation.tokenizer, self.generation.report
        return [
            CompletionLogprobsWriter(tokenizer, sequence.prompt, self.echo(index), report)
            for index, sequence in enumerate(self.generation.sequences)
        ]

    async def deltas(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(sequence number, delta) as they arrive. With `echo_only`, the engine's one token is left out."""
        async with aclosing(self.generation.deltas()) as deltas:
            async for index, delta in deltas:
                if self.echo_only:
                    delta = TextDelta("", unreported(delta.tokens), delta.finish_reason and "length", more=delta.more)
                yield index, delta


async def start_completion(services: Services, request: CompletionRequest, caller: Caller) -> CompletionGeneration:
    """Check and tokenise `request`. Everything that can be refused has been when this returns. Raises MotetError."""
    checked = await check_request(services, request, caller)
    prompts = await completion_prompts(checked.services, request)
    generation = Generation.of(checked, prompts)
    truncated = [sequence.prompt for sequence in generation.sequences[:: generation.sequences_per_prompt]]
    echoes = await _echoes(checked.services, request, truncated) if request.echo else [Echo()] * len(truncated)
    return CompletionGeneration(generation, tuple(echoes), request.n or 1, request.max_tokens == 0)


async def _echoes(services: Services, request: CompletionRequest, prompts: Sequence[tuple[int, ...]]) -> list[Echo]:
    """The echo of each prompt; with logprobs, also where in it each token begins."""
    texts, original = prompt_texts(services, request, prompts)
    if request.logprobs is None:
        return [Echo(text) for text in texts]
    echoes = []
    for text, prompt in zip(texts, prompts, strict=True):
        echoes.append(Echo(text, echo_offsets(services.tokenizer, prompt, text if original else None)))
        await asyncio.sleep(0)  # a long prompt takes milliseconds
    return echoes
