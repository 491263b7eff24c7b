"""The answers of Ollama's API as structs, and the values that they share."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from motet.api.generating.generation import Generation
from motet.api.services import Services

DoneReason: TypeAlias = Literal["stop", "length", "load", "unload"]

Nanoseconds: TypeAlias = Annotated[int, Meta(ge=0)]

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class OllamaVersion(msgspec.Struct, frozen=True):
    """The version of Ollama's API that the answers follow."""

    version: str


class OllamaDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The model's family and format."""

    parent_model: Annotated[str, Meta(description="The base model, for an adapter.")]
    format: str = "safetensors"
    family: str
    families: list[str]
    parameter_size: str = ""
    quantization_level: str


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """The base model, or an adapter."""

    name: str
    model: str
    modified_at: str
    size: Annotated[int, Meta(description="Not known here: 0.")] = 0
    digest: str
    details: OllamaDetails


class OllamaTags(msgspec.Struct, frozen=True):
    """The base model and every adapter that can be listed."""

    models: list[OllamaModel]


class OllamaShow(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: OllamaDetails
    model_info: Annotated[
        dict[str, Any], Meta(description="Among others `general.architecture` and its `.context_length`.")
    ]
    capabilities: list[str]
    modified_at: str


class OllamaCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every answer; counts and durations are set only with `done`. Durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool = False
    done_reason: DoneReason | UnsetType = UNSET
    total_duration: Nanoseconds | UnsetType = UNSET
    load_duration: Nanoseconds | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: Nanoseconds | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: Nanoseconds | UnsetType = UNSET


class OllamaFunction(msgspec.Struct, frozen=True):
    """A function and its arguments, which are empty if the answer ended before the call was complete."""

    name: str
    arguments: Annotated[msgspec.Raw, Meta(description="A JSON object.")]


class OllamaCall(msgspec.Struct, frozen=True):
    """A call that the model made."""

    id: str
    function: OllamaFunction


class OllamaAnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """An answer's message, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaChatAnswer(OllamaCounts, frozen=True, kw_only=True):
    """The answer to a conversation, or a line of a streamed one."""

    message: OllamaAnswerMessage


class OllamaText(OllamaCounts, frozen=True, kw_only=True):
    """The answer to a prompt, or a line of a streamed one."""

    response: str


def timestamp(seconds: float | None = None) -> str:
    """A time, or now, as Ollama writes it."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat().replace("+00:00", "Z")


def details(services: Services, parent: str | None) -> OllamaDetails:
    """The details of the base model, or of an adapter of `parent`."""
    model = services.engine.model
    family = architecture(services)
    return OllamaDetails(
        parent_model=parent or "",
        family=family,
        families=[family],
        quantization_level=_DTYPES.get(model.dtype, model.dtype) if model else "",
    )


def architecture(services: Services) -> str:
    """The model's family in Ollama's spelling, such as `llama`."""
    return services.engine.model.architecture.removesuffix("ForCausalLM").lower() if services.engine.model else ""


def final_counts(generation: Generation, reason: str | None, tokens: int) -> dict[str, Any]:
    """The fields of the last line of an answer of `tokens` tokens."""
    timing, now = generation.timing, time.perf_counter()
    first = timing.last if timing.first is None else timing.first
    seconds = {
        "total_duration": now - timing.began,
        "load_duration": timing.checked - timing.began,
        "prompt_eval_duration": first - timing.checked,
        "eval_duration": timing.last - first,
    }
    return {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "prompt_eval_count": generation.prompt_tokens,
        "eval_count": tokens,
        **{name: max(int(value * 1e9), 0) for name, value in seconds.items()},
    }
