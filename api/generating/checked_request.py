"""Checks a generating request: authorises it, resolves its adapter and completes its sampling parameters.

Every generating route goes through the same stages: parse (`api/schema/parsing.py`), check (here), render
(`chat_prompts.py`, `prompts.py`), submit (`generation.py`), stream (`chat_generation.py`), write (the route).
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from motet.api.adapters.registry import ServedAdapter
from motet.api.generating.adapter_choice import resolve_adapter
from motet.api.generating.request_params import priority, sampling_params, truncated
from motet.api.http.caller import Caller
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.services import Services
from motet.core.model_source import ModelInfo
from motet.core.output_format import GrammarSpec
from motet.core.sampling_params import SamplingParams


@dataclass(frozen=True)
class CheckedRequest:
    """A request whose adapter is loaded and whose parameters are complete; only its prompt can still be refused.

    `services` are the request's own: their tokenizer has the adapter's tokens, their flow is the caller's.
    """

    request: ChatRequest | CompletionRequest
    services: Services
    model: ModelInfo
    params: SamplingParams
    grammar: GrammarSpec | None
    adapter: ServedAdapter | None
    caller: Caller

    def context_left(self, prompt: tuple[int, ...]) -> int:
        """The number of tokens that `prompt`, once truncated, leaves for the answer; at least 1."""
        context = self.model.max_context
        return max(context - len(truncated(self.request, prompt, context)), 1)


async def check_request(services: Services, request: ChatRequest | CompletionRequest, caller: Caller) -> CheckedRequest:
    """Check all that does not depend on the prompt; the adapter, which is slow, comes last. Raises MotetError."""
    model = services.model()
    priority(request, caller)
    eos = {*model.eos_token_ids, *services.tokenizer.eos_token_ids}
    vocab_size = min(model.vocab_size, services.tokenizer.vocab_size)
    params = sampling_params(request, services.tokenizer.generation, eos, vocab_size)
    grammar = await services.grammars.grammar_for(
        request.response_format, services.plugins.output_formats.items, caller.flow
    )
    adapter = await resolve_adapter(services, request, caller)
    services = services.for_request(adapter, caller)
    if adapter is not None:
        eos = {*params.eos_token_ids, *adapter.prepared.eos_token_ids, *services.tokenizer.eos_token_ids}
        params = replace(params, eos_token_ids=tuple(sorted(eos)))
    return CheckedRequest(request, services, model, params, grammar, adapter, caller)
