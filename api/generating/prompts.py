"""From `prompt` to token ids; conversations are in api/generating/chat_prompts.py."""

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

# Tokenising more characters than this is worth a thread: the event loop goes on with other requests.
LONG_TEXT = 1024

# Of a text that will be truncated: this many take about half a second to tokenise.
MAX_TRUNCATED_CHARACTERS = 1 << 20

Given: TypeAlias = str | list[str | int | list[int]]
"""A text, a list of texts, a list of token ids, or a list of such lists."""


async def completion_prompts(services: Services, request: CompletionRequest) -> list[tuple[int, ...]]:
    """The token ids of every prompt. Raises InvalidRequest on an empty, mixed or too long list."""
    prompts = _as_list(request.prompt, "prompt")
    runs = request.best_of or request.n or 1
    if len(prompts) * runs > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts of {runs} choices each are over the limit of {MAX_CHOICES} choices",
            param="prompt",
        )
    if request.suffix:
        return await _gaps(services, request, prompts)
    return await token_lists(services, request.prompt, "prompt", unbounded=request.truncate_prompt_tokens is not None)


async def token_lists(services: Services, given: Given, field: str, *, unbounded: bool) -> list[tuple[int, ...]]:
    """The token ids of each text or list of ids in `given`, which the field `field` holds.

    Raises InvalidRequest on an empty or mixed list, an empty prompt or an id that is none; ContextExceeded on a text
    that cannot fit, unless it is `unbounded`.
    """
    prompts = _as_list(given, field)
    where = [field] if len(prompts) == 1 else [f"{field}[{index}]" for index in range(len(prompts))]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]  # all of them, or none
    for text, param in zip(texts, where, strict=False):
        refuse_hopeless(services, text, param, truncated=unbounded)
    ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
    tokens = await encode(services, texts, add_special_tokens=True) if texts else ids
    vocab_size = min(services.model().vocab_size, services.text.vocab_size)
    for prompt, param in zip(tokens, where, strict=True):
        if not prompt:
            raise InvalidRequest("it is empty; at least one token is needed", param=param)
        if ids and max(prompt) >= vocab_size:
            raise InvalidRequest(
                f"{max(prompt)} is not the id of a token (0 to {vocab_size - 1}); ids are those of this model's own "
                "tokenizer: with another's, send the text instead",
                param=param,
            )
    return [tuple(prompt) for prompt in tokens]


async def _gaps(
    services: Services, request: CompletionRequest, prompts: Sequence[str | list[int]]
) -> list[tuple[int, ...]]:
    """Prompts between which and `suffix` the answer goes. Raises InvalidRequest if the model fills no gaps."""
    ids = services.text.gap_ids()
    if ids is None:
        raise InvalidRequest(
            "the model has no tokens for filling in the middle", param="suffix", code=error_codes.UNSUPPORTED_PARAMETER
        )
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if request.truncate_prompt_tokens is not None:
        raise InvalidRequest("suffix and truncate_prompt_tokens exclude each other", param="truncate_prompt_tokens")
    if len(texts) < len(prompts):
        raise InvalidRequest("with suffix, a prompt is a text", param="prompt", code=error_codes.INVALID_TYPE)
    suffix = request.suffix or ""
    for text in texts:
        refuse_hopeless(services, text + suffix, "prompt")
    *before, after = await encode(services, [*texts, suffix], add_special_tokens=False)
    opening = services.text.opening_ids()
    return [(*opening, ids[0], *prefix, ids[1], *after, ids[2]) for prefix in before]


def prompt_texts(
    services: Services, request: CompletionRequest, prompts: Sequence[tuple[int, ...]]
) -> tuple[list[str], bool]:
    """Each prompt as text, for `echo`, and whether that is as the caller wrote it."""
    given = _as_list(request.prompt, "prompt")
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    if request.truncate_prompt_tokens is None and texts:
        return texts, True
    return [services.text.decode(prompt, goes_on=True) for prompt in prompts], False


def _as_list(given: Given, field: str) -> list[str | list[int]]:
    """`given` as a list of texts or of lists of ids."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest("the list is empty", param=field)
    kinds = {type(item) for item in given}
    if len(kinds) > 1:
        raise InvalidRequest("texts, ids and lists of ids cannot be mixed", param=field, code=error_codes.INVALID_TYPE)
    if kinds == {int}:
        return [[item for item in given if isinstance(item, int)]]
    return [item for item in given if not isinstance(item, int)]


def refuse_hopeless(services: Services, text: str, param: str, *, truncated: bool = False) -> None:
    """Raise ContextExceeded for a text that is too long even if every token in it is the longest that there is.

    One that will be `truncated` may be longer, but not by so much that tokenising it delays others. Raises
    InvalidRequest then.
    """
    context = services.model().max_context
    if services.text.may_fit(text, context):
        return
    if truncated and len(text) > MAX_TRUNCATED_CHARACTERS:
        raise InvalidRequest(
            f"{param} has {len(text)} characters; with truncate_prompt_tokens, at most {MAX_TRUNCATED_CHARACTERS} are "
            "allowed: send the end of the text",
            param=param,
        )
    if not truncated:
        raise prompt_too_long(context, f"more than {context} tokens ({len(text)} characters)", param)


async def encode(services: Services, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    """The token ids of each text, in a thread if that takes long."""
    if sum(map(len, texts)) < LONG_TEXT:
        return services.text.encode_batch(texts, add_special_tokens=add_special_tokens)
    work = partial(services.text.encode_batch, texts, add_special_tokens=add_special_tokens)
    return await services.tokenising.run(services.flow, sum(map(len, texts)), work)
