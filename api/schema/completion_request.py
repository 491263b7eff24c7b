"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from motet.api.schema.generation_request import GenerateRequest
from motet.api.schema.request_fields import MAX_CHOICES, TokenId, described
from motet.core.sampling_params import MAX_TOP_LOGPROBS


class CompletionRequest(GenerateRequest, frozen=True, kw_only=True):
    """Body of POST /v1/completions. Without `max_tokens`, the answer has at most 16 tokens."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]],
        described(
            "A string, a list of strings, a list of token ids, or a list of such lists (no mixture).",
            "Once upon a time",
            ["One prompt", "and another"],
        ),
    ]
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        described("Report each token's logprob and this many alternatives."),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None, described("Longest answer, in tokens; 0 only with `echo`.", 16)
    ] = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None,
        described("Generate this many choices per prompt, and return the n with the highest mean logprob per token."),
    ] = None
    echo: Annotated[bool | None, described("Start with the prompt; with `logprobs`, include those of its tokens.")] = (
        None
    )
    suffix: Annotated[
        str | None, described("The text after the completion; needs a model with fill-in-the-middle tokens.")
    ] = None
