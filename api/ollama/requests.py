"""The fields that requests of Ollama's API share, and their translation into a chat or completion request."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from motet.api.schema.parsing import Parsed, convert, unknown_fields
from motet.api.schema.request_fields import MAX_STOP_STRINGS, Effort, Fraction, Penalty, StopString, described
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

LATEST = "latest"
"""The tag that Ollama's clients add to names without one."""

Images: TypeAlias = Annotated[list[Any] | None, Meta(description="Only empty: the model reads text.")]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to generate. Options of Ollama that are not here are ignored."""

    num_predict: Annotated[
        Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None,
        described("Longest answer, in tokens; 0 or less: as the context allows."),
    ] = None
    temperature: Annotated[Annotated[float, Meta(ge=0, le=2)] | None, described("0 is greedy.")] = None
    top_k: Annotated[Annotated[int, Meta(ge=0, le=2**31 - 1)] | None, described("0: all.")] = None
    top_p: Fraction | None = None
    min_p: Fraction | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None, described("Below 0: a random one, as without a seed.")
    ] = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def limit(self) -> int | None:
        """`num_predict`, if it is a limit."""
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None


class OllamaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every request that generates."""

    model: Annotated[str, Meta(max_length=1024, description="The base model or an adapter; `:latest` may follow.")]
    options: Options | None = None
    format: Annotated[
        Literal["", "json"] | dict[str, Any] | None, described("`json`, or a JSON schema that the answer matches.")
    ] = None
    stream: Annotated[bool | None, described("Answer line by line; default: true.")] = None
    keep_alive: Annotated[str | float | None, described("Accepted; has no effect.")] = None
    think: Annotated[
        bool | Literal["low", "medium", "high"] | None, described("For chat templates that read it; others ignore it.")
    ] = None


def parsed(body: dict[str, Any], kind: type[T]) -> Parsed[T]:
    """The body as a request of this kind. Raises InvalidRequest."""
    return Parsed(convert(body, kind), unknown_fields(body, kind, {}))


def model_name(services: Services, model: str) -> str:
    """The model's name as OpenAI's routes have it."""
    name, _, tag = model.rpartition(":")
    # `local:latest` is the adapter `latest` of the source `local`.
    return name if tag == LATEST and name not in services.plugins.adapter_sources.items else model


def generate_fields(services: Services, request: OllamaRequest) -> dict[str, Any]:
    """The fields that chat and completion requests share, without `max_tokens`."""
    options = request.options or Options()
    return {
        "model": model_name(services, request.model),
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "seed": options.seed if options.seed is not None and options.seed >= 0 else None,
        "stop": options.stop,
        "repetition_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "response_format": _response_format(request.format),
    }


def effort(request: OllamaRequest) -> Effort | None:
    """`think` as chat's `reasoning_effort`."""
    if isinstance(request.think, str):
        return request.think
    return None if request.think is None else "medium" if request.think else "none"


def refuse_images(images: list[Any] | None, where: str) -> None:
    """Raise InvalidRequest if there are any."""
    if images:
        raise InvalidRequest(
            f"{where} must be empty: the model reads text only", param=where, code=error_codes.UNSUPPORTED_VALUE
        )


def _response_format(form: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not form:
        return None
    if form == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "format", "schema": form, "strict": True}}
