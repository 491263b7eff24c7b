"""The bodies of LoRAX's routes. A null field counts as absent; ranges are those that LoRAX's clients check."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from motet.api.schema.adapter_fields import MergedAdapters
from motet.api.schema.request_fields import MAX_CHOICES, MAX_STOP_STRINGS, Penalty, Positive, StopString, described
from motet.core.sampling_params import MAX_TOP_LOGPROBS

SENT_EVERYWHERE = {"stream": "the client sends it to every route"}


class AdapterParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The adapter that answers; without one, the base model does."""

    adapter_id: Annotated[
        Annotated[str, Meta(max_length=1024)] | None,
        described("An adapter; null, empty or `__base_model__`: the base model.", "demo:pirate"),
    ] = None
    adapter_source: Annotated[str | None, described("Where it comes from, unless its id says so.", "hub", "local")] = (
        None
    )
    merged_adapters: Annotated[MergedAdapters | None, described("Several adapters instead of one.")] = None
    api_token: Annotated[str | None, described("Token for the adapter source. Never logged.")] = None

    def __repr__(self) -> str:
        """Only the type's name: prompts and tokens must not reach a log."""
        return f"{type(self).__name__}(...)"


class GenerateParameters(AdapterParameters, frozen=True, kw_only=True):
    """How to generate. Greedy, unless do_sample is true or temperature, top_k, top_p or typical_p is set."""

    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None,
        described("Generate this many answers; the likeliest one comes first, the others are in details."),
    ] = None
    temperature: Annotated[Annotated[float, Meta(ge=0, le=100)] | None, described("0 is greedy.", 0.7)] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None, described("Over 1: avoid tokens of prompt and answer.")
    ] = None
    frequency_penalty: Annotated[Penalty | None, described("Over 0: avoid tokens of the answer, by how often.")] = None
    presence_penalty: Annotated[Penalty | None, described("Over 0: avoid tokens of the answer.")] = None
    top_k: Annotated[Positive | None, described("Sample from the k likeliest tokens.")] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None, described("Sample from the most likely tokens of this total mass.")
    ] = None
    typical_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        described("Sample from the locally typical tokens of this total mass."),
    ] = None
    do_sample: Annotated[bool | None, described("Sample, rather than take the likeliest token.")] = None
    max_new_tokens: Annotated[
        Positive | None, described("Longest answer; absent: as much as the context has left.", 20)
    ] = None
    ignore_eos_token: Annotated[bool | None, described("Continue past the model's end-of-text token.")] = None
    return_full_text: Annotated[bool | None, described("Begin generated_text with the inputs.")] = None
    stop: Annotated[
        Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None,
        described("The answer ends before the first of these."),
    ] = None
    truncate: Annotated[Positive | None, described("Keep only the prompt's last tokens, this many.")] = None
    watermark: Annotated[bool | None, described("Only false: answers are not watermarked.")] = None
    details: Annotated[bool | None, described("Include `details`: tokens, counts, why the answer ended.")] = None
    decoder_input_details: Annotated[
        bool | None, described("Include the prompt's tokens in details; not in streams.")
    ] = None
    return_k_alternatives: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_TOP_LOGPROBS)] | None, described("Alternatives to report for each token.")
    ] = None
    apply_chat_template: Annotated[bool | None, described("Render the inputs as a user's message.")] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0)] | None, described("The same seed gives the same answer; below 2^64.", 7)
    ] = None
    response_format: Annotated[
        dict[str, Any] | None,
        described(
            "`text`, `json_object` or `json_schema` (both with `schema`), or a plugin's.", {"type": "json_object"}
        ),
    ] = None

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled, rather than the likeliest taken."""
        options = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return self.temperature != 0 and (bool(self.do_sample) or any(value is not None for value in options))


class LoraxRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /generate and /generate_stream."""

    inputs: Annotated[str, described("The text to continue.", "Once upon a time")]
    parameters: GenerateParameters | None = None

    def __repr__(self) -> str:
        """Only the type's name: prompts and tokens must not reach a log."""
        return f"{type(self).__name__}(...)"


class CompatibleRequest(LoraxRequest, frozen=True, kw_only=True):
    """Body of POST / and /invocations."""

    stream: Annotated[bool | None, described("Answer as server-sent events.")] = None


class LoraxEmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /embed."""

    inputs: Annotated[str, described("The text.", "The sea is wide.")]
    parameters: AdapterParameters | None = None

    def __repr__(self) -> str:
        """Only the type's name: prompts and tokens must not reach a log."""
        return f"{type(self).__name__}(...)"


class ClassifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /classify and /classify_batch."""

    inputs: Annotated[str | list[str], described("The text or texts.", "The sea is wide.")]
