"""The fields that chat and completion requests share: sampling, stop strings, streaming."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.request_fields import (
    MAX_CHOICES,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    Bias,
    Fraction,
    Penalty,
    Positive,
    ServiceTier,
    StopString,
    TokenId,
    described,
)
from motet.core.sampling_params import MAX_LOGIT_BIAS


class StreamOptions(msgspec.Struct, frozen=True):
    """Options for streams."""

    include_usage: Annotated[bool | None, described("Send one more chunk, with `usage`, at the end.")] = None
    include_obfuscation: Annotated[bool | None, described("Accepted; has no effect.")] = None


class GenerateRequest(AdapterChoice, frozen=True, kw_only=True):
    """The fields that chat and completions share."""

    max_tokens: Annotated[Positive | None, described("Longest answer, in tokens.", 64)] = None
    temperature: Annotated[Annotated[float, Meta(ge=0, le=2)] | None, described("0 is greedy.", 0.7)] = None
    top_p: Annotated[Fraction | None, described("Sample from the most likely tokens of this total mass.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None, described("Sample from the k likeliest; 0 or -1: all.")
    ] = None
    min_p: Annotated[
        Fraction | None, described("Drop tokens less likely than this fraction of the likeliest token's probability.")
    ] = None
    typical_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        described("Sample from the locally typical tokens of this total mass."),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None, described("Above 1: avoid tokens of prompt and answer.", 1.1)
    ] = None
    presence_penalty: Annotated[Penalty | None, described("Above 0: avoid tokens of the answer.")] = None
    frequency_penalty: Annotated[
        Penalty | None, described("The same, multiplied by how often each token occurred.")
    ] = None
    logit_bias: Annotated[
        Annotated[dict[str, Bias], Meta(max_length=MAX_LOGIT_BIAS)] | None,
        described("Maps a token id (as a string) to a bias that is added to its logit.", {"42": -100}),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
        described("The same seed gives the same answer; if absent, it is random.", 7),
    ] = None
    n: Annotated[Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None, described("Choices per prompt.")] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None,
        described("The answer ends before the first of these.", ["\n\n"]),
    ] = None
    stop_token_ids: Annotated[
        Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None, described("Tokens that end the answer.")
    ] = None
    min_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None,
        described("No end-of-text or stop token may end the answer before this many tokens."),
    ] = None
    ignore_eos: Annotated[bool | None, described("Continue past the model's end-of-text token.")] = None
    ignore_eos_token: Annotated[bool | None, described("Another name for `ignore_eos`.")] = None
    return_token_ids: Annotated[
        bool | None, described("Report the token ids of prompt and answer, including those that ended the answer.")
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, described("Name tokens in logprobs as `token_id:ID`, and include those that ended the answer.")
    ] = None
    response_format: Annotated[
        dict[str, Any] | None,
        described("`type` is `text`, `json_object` or a format of a plugin.", {"type": "json_object"}),
    ] = None
    stream: Annotated[bool | None, described("Answer as server-sent events.")] = None
    stream_options: Annotated[StreamOptions | None, described("Only with `stream`.")] = None
    user: Annotated[str | None, described("Accepted; has no effect.")] = None
    metadata: Annotated[dict[str, Any] | None, described("Accepted; has no effect.")] = None
    store: Annotated[bool | None, described("Only false is accepted: nothing is stored.")] = None
    service_tier: Annotated[ServiceTier | None, described("Accepted; there is one tier, `default`.")] = None
    prompt_cache_key: Annotated[str | None, described("Accepted; has no effect.")] = None
    prompt_cache_retention: Annotated[str | None, described("Accepted; has no effect.")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, described("Accepted; has no effect.")] = None
    safety_identifier: Annotated[str | None, described("Accepted; has no effect.")] = None

    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries `usage`."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
