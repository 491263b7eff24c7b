"""Renders prompts: tokenises text, checks token ids; chat_prompts.py renders conversations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from motet.api.generating.context_limit import prompt_too_long
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.request_fields import MAX_CHOICES
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest

# Tokenise more characters than this in a thread, so that the event loop can serve other requests.
LONG_TEXT = 1024

# Limit for text that will be truncated: this many characters take about half a second to tokenise.
MAX_TRUNCATED_CHARACTERS = 1 << 20

PromptInput: TypeAlias = str | list[str | int | list[int]]
"""A string, a list of strings, a list of token ids, or a list of such lists."""


async def completion_prompts(services: Services, request: CompletionRequest) -> list[tuple[int, ...]]:
    """The token ids of every prompt. Raises InvalidRequest on an empty, mixed or too long list."""
    prompts = _as_list(request.prompt, "prompt")
    per_prompt = request.best_of or request.n or 1
    if len(prompts) * per_prompt > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {per_prompt} choices each exceed the limit of {MAX_CHOICES} choices",
            param="prompt",
        )
    if request.suffix:
        return await _infill_prompts(services, request, prompts)
    return await token_lists(services, request.prompt, "prompt", truncated=request.truncate_prompt_tokens is not None)


async def token_lists(
    services: Services, prompt_input: PromptInput, field: str, *, truncated: bool
) -> list[tuple[int, ...]]:
    """The token ids of each string or list of ids in `prompt_input`, the value of `field`.

    Raises InvalidRequest on an empty or mixed list, an empty prompt or an invalid id; ContextExceeded on text
    that cannot fit, unless it will be `truncated`.
    """
    prompts = _as_list(prompt_input, field)
    params = [field] if len(prompts) == 1 else [f"{field}[{index}]" for index in range(len(prompts))]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]  # all of them, or none
    for text, param in zip(texts, params, strict=False):
        refuse_too_long(services, text, param, truncated=truncated)
    ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
    tokens = await encode(services, texts, add_special_tokens=True) if texts else ids
    vocab_size = min(services.model().vocab_size, services.tokenizer.vocab_size)
    for prompt, param in zip(tokens, params, strict=True):
        if not prompt:
            raise InvalidRequest(f"{param} must not be empty", param=param)
        if ids and max(prompt) >= vocab_size:
            raise InvalidRequest(
                f"{max(prompt)} is not a token id (0 to {vocab_size - 1}); use this model's tokenizer, or send the "
                "text instead",
                param=param,
            )
    return [tuple(prompt) for prompt in tokens]


async def _infill_prompts(
    services: Services, request: CompletionRequest, prompts: Sequence[str | list[int]]
) -> list[tuple[int, ...]]:
    """The prompts for an answer between `prompt` and `suffix`. Raises InvalidRequest if the model cannot fill it in."""
    ids = services.tokenizer.fill_in_the_middle_ids()
    if ids is None:
        raise InvalidRequest(
            "suffix is not supported: the model has no fill-in-the-middle tokens",
            param="suffix",
            code=error_codes.UNSUPPORTED_PARAMETER,
        )
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if request.truncate_prompt_tokens is not None:
        raise InvalidRequest("suffix and truncate_prompt_tokens cannot be combined", param="truncate_prompt_tokens")
    if len(texts) < len(prompts):
        raise InvalidRequest("with `suffix`, `prompt` must be a string", param="prompt", code=error_codes.INVALID_TYPE)
    suffix = request.suffix or ""
    for text in texts:
        refuse_too_long(services, text + suffix, "prompt")
    *before, after = await encode(services, [*texts, suffix], add_special_tokens=False)
    opening = services.tokenizer.opening_ids()
    return [(*opening, ids[0], *prefix, ids[1], *after, ids[2]) for prefix in before]


def prompt_texts(
    services: Services, request: CompletionRequest, prompts: Sequence[tuple[int, ...]]
) -> tuple[list[str], bool]:
    """Each prompt as text, for `echo`, and whether it is the caller's original text."""
    originals = _as_list(request.prompt, "prompt")
    texts = [prompt for prompt in originals if isinstance(prompt, str)]
    if request.truncate_prompt_tokens is None and texts:
        return texts, True
    return [services.tokenizer.decode(prompt, continued=True) for prompt in prompts], False


def _as_list(prompt_input: PromptInput, field: str) -> list[str | list[int]]:
    """`prompt_input` as a list of strings or of lists of ids."""
    if isinstance(prompt_input, str):
        return [prompt_input]
    if not prompt_input:
        raise InvalidRequest(f"{field} must not be an empty list", param=field)
    kinds = {type(item) for item in prompt_input}
    if len(kinds) > 1:
        raise InvalidRequest(
            f"{field} must not mix strings, ids and lists of ids", param=field, code=error_codes.INVALID_TYPE
        )
    if kinds == {int}:
        return [[item for item in prompt_input if isinstance(item, int)]]
    return [item for item in prompt_input if not isinstance(item, int)]


def refuse_too_long(services: Services, text: str, param: str, *, truncated: bool = False) -> None:
    """Raise ContextExceeded for text that would be too long even if each of its tokens were the longest one.

    Text that will be `truncated` may be longer, up to MAX_TRUNCATED_CHARACTERS. Raises InvalidRequest beyond that.
    """
    context = services.model().max_context
    if services.tokenizer.may_fit(text, context):
        return
    if truncated and len(text) > MAX_TRUNCATED_CHARACTERS:
        raise InvalidRequest(
            f"{param} has {len(text)} characters; with truncate_prompt_tokens the maximum is "
            f"{MAX_TRUNCATED_CHARACTERS}: send only the end of the text",
            param=param,
        )
    if not truncated:
        raise prompt_too_long(context, f"more than {context} tokens ({len(text)} characters)", param)


async def encode(services: Services, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    """The token ids of each string; long texts are tokenised in a thread."""
    if sum(map(len, texts)) < LONG_TEXT:
        return services.tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
    work = partial(services.tokenizer.encode_batch, texts, add_special_tokens=add_special_tokens)
    return await services.tokenising.run(services.flow, sum(map(len, texts)), work)
