"""A LoRAX request as the completion request that it amounts to."""

from __future__ import annotations

from typing import Any

from motet.api.lorax.requests import AdapterParameters, GenerateParameters
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.parsing import check_adapters
from motet.core.errors import InvalidRequest

BASE = "__base_model__"
"""LoRAX's own name for no adapter."""

SEED_BITS = 2**63 - 1
"""What is used of a seed; LoRAX's have a bit more."""


def adapter_fields(parameters: AdapterParameters) -> dict[str, Any]:
    """Which adapter, as every route of ours has it."""
    adapter = None if parameters.adapter_id == BASE else parameters.adapter_id or None
    return {
        "model": "",
        "adapter_id": adapter,
        "merged_adapters": parameters.merged_adapters,
        # A source without an adapter means nothing, and clients send it.
        "adapter_source": parameters.adapter_source if adapter or parameters.merged_adapters else None,
        "api_token": parameters.api_token,
    }


def completion_request(inputs: str, parameters: GenerateParameters, stream: bool) -> CompletionRequest:
    """The same as a completion request, with max_tokens still to be set. What is not said is off, not the model's own.

    Raises InvalidRequest for what cannot go together.
    """
    check(inputs, parameters, stream)
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


def check(inputs: str, parameters: GenerateParameters, stream: bool) -> None:
    """Raise InvalidRequest for what cannot go together."""
    several = (parameters.best_of or 1) > 1
    if not inputs:
        raise InvalidRequest("`inputs` cannot be empty", param="inputs")
    if parameters.watermark:
        raise InvalidRequest("answers are not watermarked here; leave it out", param="parameters.watermark")
    if several and stream:
        raise InvalidRequest("`best_of` != 1 is not supported when streaming tokens", param="parameters.best_of")
    if several and not parameters.samples:
        raise InvalidRequest("you must use sampling when `best_of` is > 1", param="parameters.best_of")
    if several and parameters.seed is not None:
        raise InvalidRequest("`seed` must not be set when `best_of` > 1", param="parameters.seed")
    if parameters.seed is not None and parameters.seed >= 2**64:
        raise InvalidRequest("`seed` must be below 2^64", param="parameters.seed")
    if parameters.decoder_input_details and stream:
        raise InvalidRequest(
            "`decoder_input_details` == true is not supported when streaming tokens",
            param="parameters.decoder_input_details",
        )


def _format(asked: dict[str, Any] | None) -> dict[str, Any] | None:
    """LoRAX has a schema beside any type; json_schema is OpenAI's shape everywhere else here."""
    if asked is None:
        return None
    if asked.get("type") == "json_schema" and "json_schema" not in asked:
        return {**asked, "type": "json_object"}
    return asked


def _or(value: Any, usual: Any) -> Any:
    return usual if value is None else value
