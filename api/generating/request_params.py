"""Turns a request's fields into complete sampling parameters.

A value comes from the request, else from the model's generation_config, else from OpenAI's documentation.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import TypeVar

from motet.api.generating.context_limit import answer_too_long, prompt_too_long
from motet.api.http.caller import Caller
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.generation_request import GenerateRequest
from motet.core.errors import Forbidden, InvalidRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.client.tokenizer import GenerationDefaults

DEFAULT_COMPLETION_TOKENS = 16
MAX_LOGPROBS = 1_000_000
"""Limit per answer that is not streamed; one logprob is about 75 bytes of JSON."""

T = TypeVar("T", int, float)


def sampling_params(
    request: ChatRequest | CompletionRequest, defaults: GenerationDefaults, eos: Iterable[int], vocab_size: int
) -> SamplingParams:
    """All but `max_tokens` (0 here; see `token_limit`). Raises InvalidRequest on ids outside the vocabulary."""
    top_p = _first(request.top_p, defaults.top_p, 1.0)
    top_k = max(_first(request.top_k, defaults.top_k, 0), 0)
    return SamplingParams(
        max_tokens=0,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        # top_p 0 keeps only the likeliest token.
        top_p=top_p or 1.0,
        top_k=top_k if top_p else 1,
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        typical_p=1.0 if request.typical_p is None else request.typical_p,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_logit_bias(request, vocab_size),
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        min_tokens=request.min_tokens or 0,
        eos_token_ids=tuple(sorted(set(eos))),
        stop_token_ids=_stop_token_ids(request, vocab_size),
        ignore_eos=bool(request.ignore_eos or request.ignore_eos_token),
        logprobs=_logprobs(request),
        prompt_logprobs=request.logprobs if isinstance(request, CompletionRequest) and request.echo else None,
    )


def token_limit(request: ChatRequest | CompletionRequest, prompt_tokens: int, context: int) -> int:
    """`max_tokens`, or its default, for a prompt of this length. Raises ContextExceeded giving the numbers."""
    if isinstance(request, ChatRequest):
        field, prompt_field, default = "max_tokens", "messages", context
        requested = request.max_tokens
        if requested is None and request.max_completion_tokens is not None:
            field, requested = "max_completion_tokens", request.max_completion_tokens
    else:
        field, prompt_field, default = "max_tokens", "prompt", DEFAULT_COMPLETION_TOKENS
        requested = request.max_tokens
    room = context - prompt_tokens
    if room < 1:
        raise prompt_too_long(context, prompt_tokens, prompt_field)
    if requested is not None and requested > room:
        raise answer_too_long(context, prompt_tokens, requested, prompt_field, field)
    limit = min(default, room) if requested is None else requested
    if (request.min_tokens or 0) > limit:
        raise InvalidRequest(
            f"min_tokens is {request.min_tokens}, but the answer has at most {limit} tokens", param="min_tokens"
        )
    return limit


def check_logprobs(request: ChatRequest | CompletionRequest, answer: int, prompt: int) -> None:
    """Raise InvalidRequest if an answer could have too many logprobs; `answer` and `prompt` count all choices' tokens.

    The logprobs of an echoed prompt are sent at once, even if the answer is streamed.
    """
    top = _logprobs(request)
    if top is None:
        return
    echoed = prompt if isinstance(request, CompletionRequest) and request.echo else 0
    tokens = echoed + (0 if request.stream else answer)
    if tokens * (top + 1) <= MAX_LOGPROBS:
        return
    param = "top_logprobs" if isinstance(request, ChatRequest) and top else "logprobs"
    raise InvalidRequest(
        f"{param}: up to {tokens} tokens with {top + 1} logprobs each exceed the limit of {MAX_LOGPROBS} per "
        "answer; request fewer, lower max_tokens or n, " + ("or leave echo out" if echoed else "or set stream"),
        param=param,
    )


def check_token_ids(request: ChatRequest | CompletionRequest, answer: int, prompt: int) -> None:
    """Raise InvalidRequest if an answer could have too many ids; a completion repeats its prompt's for each choice."""
    if not request.return_token_ids:
        return
    ids = (0 if request.stream else answer) + (prompt if isinstance(request, CompletionRequest) else 0)
    if ids > MAX_LOGPROBS:
        raise InvalidRequest(
            f"up to {ids} token ids exceed the limit of {MAX_LOGPROBS} per answer; lower max_tokens or n, or "
            "set stream",
            param="return_token_ids",
        )


def priority(request: AdapterChoice, caller: Caller) -> int:
    """The priority of the request's sequences. Raises Forbidden for one below 0 without an admin's key."""
    requested = request.priority or 0
    if requested < 0 and not caller.admin:
        raise Forbidden("a priority below 0 needs an admin's key", param="priority")
    return requested + caller.priority


def answer_room(request: ChatRequest | CompletionRequest, context: int) -> int:
    """The tokens of the context that `truncate_prompt_tokens: -1` leaves for the answer."""
    if isinstance(request, ChatRequest):
        return request.max_tokens or request.max_completion_tokens or context // 4
    return DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else max(request.max_tokens, 1)


def truncated(request: AdapterChoice, prompt: tuple[int, ...], context: int, room: int = 1) -> tuple[int, ...]:
    """The last `truncate_prompt_tokens` tokens of the prompt; for -1, all but `room` tokens of the context.

    Raises InvalidRequest if none would be left.
    """
    keep = request.truncate_prompt_tokens
    if keep == 0:
        raise InvalidRequest("a prompt needs at least one token", param="truncate_prompt_tokens")
    if keep is None or len(prompt) <= keep:
        return prompt
    if keep == -1:
        keep = max(context - room, 1)
    return prompt[-keep:]


def _first(requested: T | None, recommended: T | None, default: T) -> T:
    if requested is not None:
        return requested
    return default if recommended is None else recommended


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def _logit_bias(request: GenerateRequest, vocab_size: int) -> dict[int, float]:
    bias = {}
    for name, value in (request.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocab_size):
            raise InvalidRequest(
                f"logit_bias: {name[:32]!r} is not a token id (0 to {vocab_size - 1})", param="logit_bias"
            )
        bias[int(name)] = value
    return bias


def _stop_token_ids(request: GenerateRequest, vocab_size: int) -> tuple[int, ...]:
    for index, token in enumerate(request.stop_token_ids or ()):
        if token >= vocab_size:
            raise InvalidRequest(
                f"stop_token_ids: {token} is not a token id (0 to {vocab_size - 1})",
                param=f"stop_token_ids[{index}]",
            )
    return tuple(request.stop_token_ids or ())
