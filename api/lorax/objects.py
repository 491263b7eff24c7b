"""The answers of LoRAX's routes as structs."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

LoraxFinish: TypeAlias = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(msgspec.Struct, frozen=True):
    """A token of the prompt; the first has no logprob."""

    id: int
    text: str
    logprob: float | None


class AlternativeToken(msgspec.Struct, frozen=True):
    """A token that the model could have chosen instead."""

    id: int
    text: str
    logprob: float


class LoraxToken(msgspec.Struct, frozen=True, omit_defaults=False):
    """A token of the answer. The texts of all tokens add up to the generated text."""

    id: int
    text: Annotated[
        str, Meta(description="What it adds to the text; the last token of a split character adds all of it.")
    ]
    logprob: float
    special: bool
    skipped: bool = False
    alternative_tokens: list[AlternativeToken] | UnsetType = UNSET


class LoraxSequence(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of `best_of` other than the likeliest."""

    generated_text: str
    finish_reason: LoraxFinish
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[LoraxToken]


class LoraxDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of an answer, and why it ended."""

    finish_reason: LoraxFinish
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: int = 0
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[LoraxToken]
    best_of_sequences: list[LoraxSequence] | UnsetType = UNSET


class LoraxAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /generate."""

    generated_text: str
    details: LoraxDetails | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The token counts of a streamed answer, and why it ended."""

    finish_reason: LoraxFinish
    prompt_tokens: int
    generated_tokens: int
    seed: int | None


class LoraxEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream: a token; the last one also has the whole text."""

    token: LoraxToken
    generated_text: str | None = None
    details: StreamDetails | None = None


class LoraxEmbedding(msgspec.Struct, frozen=True):
    """The answer to POST /embed: a vector of length 1."""

    embeddings: list[float]


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GET /info. Sizes are in tokens; fields without a meaning here are null, false or 0."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_total_tokens: int
    waiting_served_ratio: float
    max_batch_total_tokens: int
    max_waiting_tokens: int
    validation_workers: int
    eager_prefill: bool
    version: str
    sha: str | None
    docker_label: str | None
    request_logger_url: str | None


class LoraxError(msgspec.Struct, frozen=True):
    """The error object of LoRAX's routes."""

    error: str
    error_type: Literal[
        "validation", "generation", "overloaded", "incomplete_generation", "not_found", "authentication"
    ]
