"""Translates a LoRAX request into a completion request."""

from __future__ import annotations

from typing import Any

from motet.api.lorax.requests import AdapterParameters, GenerateParameters
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.parsing import check_adapters
from motet.core.errors import InvalidRequest

BASE = "__base_model__"
"""LoRAX's name for no adapter."""

SEED_BITS = 2**63 - 1
"""The bits of a seed that are used; LoRAX's seeds have one more."""


def adapter_fields(parameters: AdapterParameters) -> dict[str, Any]:
    """The fields that name the adapter in a chat or completion request."""
    adapter = None if parameters.adapter_id == BASE else parameters.adapter_id or None
    return {
        "model": "",
        "adapter_id": adapter,
        "merged_adapters": parameters.merged_adapters,
        # Clients send a source without an adapter, which has no effect.
        "adapter_source": parameters.adapter_source if adapter or parameters.merged_adapters else None,
        "api_token": parameters.api_token,
    }


def completion_request(inputs: str, parameters: GenerateParameters, stream: bool) -> CompletionRequest:
    """The request as a completion request, still without max_tokens. Absent fields are off, not the model's defaults.

    Raises InvalidRequest for fields that cannot be combined.
    """
    check_combinations(inputs, parameters, stream)
    samples = parameters.samples
    scored = stream or parameters.details or (parameters.best_of or 1) > 1
    request = CompletionRequest(
        **adapter_fields(parameters),
        prompt=inputs,
        n=parameters.best_of,
        temperature=_or(parameters.temperature, 1.0) if samples else 0.0,
        top_k=_or(parameters.top_k, 0) if samples else 0,
        top_p=_or(parameters.top_p, 1.0) if samples else 1.0,
        typical_p=parameters.typical_p if samples else None,
        min_p=0.0,
        repetition_penalty=_or(parameters.repetition_penalty, 1.0),
        frequency_penalty=parameters.frequency_penalty,
        presence_penalty=parameters.presence_penalty,
        ignore_eos_token=parameters.ignore_eos_token,
        stop=parameters.stop or None,
        truncate_prompt_tokens=parameters.truncate,
        seed=None if parameters.seed is None else parameters.seed & SEED_BITS,
        response_format=_format(parameters.response_format),
        logprobs=(parameters.return_k_alternatives or 0) if scored else None,
        echo=parameters.decoder_input_details and parameters.details,
        stream=stream,
    )
    check_adapters(request)
    return request


def chat_request(inputs: str, request: CompletionRequest) -> ChatRequest:
    """The conversation that `apply_chat_template` makes of the inputs; only its prompt matters."""
    return ChatRequest(
        model=request.model,
        messages=[Message("user", inputs)],
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )


def check_combinations(inputs: str, parameters: GenerateParameters, stream: bool) -> None:
    """Raise InvalidRequest for fields that cannot be combined."""
    has_alternatives = (parameters.best_of or 1) > 1
    if not inputs:
        raise InvalidRequest("`inputs` cannot be empty", param="inputs")
    if parameters.watermark:
        raise InvalidRequest("watermark is not supported; leave it out", param="parameters.watermark")
    if has_alternatives and stream:
        raise InvalidRequest("`best_of` != 1 is not supported when streaming tokens", param="parameters.best_of")
    if has_alternatives and not parameters.samples:
        raise InvalidRequest("you must use sampling when `best_of` is > 1", param="parameters.best_of")
    if has_alternatives and parameters.seed is not None:
        raise InvalidRequest("`seed` must not be set when `best_of` > 1", param="parameters.seed")
    if parameters.seed is not None and parameters.seed >= 2**64:
        raise InvalidRequest("`seed` must be below 2^64", param="parameters.seed")
    if parameters.decoder_input_details and stream:
        raise InvalidRequest(
            "`decoder_input_details` == true is not supported when streaming tokens",
            param="parameters.decoder_input_details",
        )


def _format(form: dict[str, Any] | None) -> dict[str, Any] | None:
    """`form` as OpenAI's response_format, whose json_schema has another shape than LoRAX's."""
    if form is None:
        return None
    if form.get("type") == "json_schema" and "json_schema" not in form:
        return {**form, "type": "json_object"}
    return form


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
