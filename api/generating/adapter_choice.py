"""Resolves a request's adapter (`model`, `adapter_id` or `merged_adapters`), authorises the caller and loads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from motet.api.adapters.registry import ServedAdapter
from motet.api.http.caller import Caller
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.services import Services
from motet.core.errors import InvalidRequest, MotetError, from_info

FINGERPRINT_CHARACTERS = 12
"""Of an adapter's fingerprint, in logs: enough to identify its content."""


def adapter_name(request: AdapterChoice) -> str:
    """The name of the request's adapter as the request has it, by which gateways route; "" if it has none."""
    return "" if request.merged_adapters else request.adapter_id or request.model


async def resolve_adapter(services: Services, request: AdapterChoice, caller: Caller) -> ServedAdapter | None:
    """The request's adapter, loaded and registered with the engine; None for the base. Raises MotetError.

    `model` names it, or, if that is the base, `adapter_id` or `merged_adapters`.
    """
    source = request.adapter_source
    alternative = "adapter_id" if request.adapter_id else "merged_adapters" if request.merged_adapters else None
    ref = await services.adapters.find(request.model, None if alternative else source)
    if ref is not None and alternative:
        raise InvalidRequest(
            f"{alternative} requires that model names the base model; here it names an adapter", param=alternative
        )
    if request.merged_adapters is not None:
        return await _resolve_merged(services, request, caller)
    with _errors_at(alternative or "model"):
        if request.adapter_id:
            ref = await services.adapters.find(request.adapter_id, source)
        if ref is None:
            return None
        caller.record.adapter = str(ref)
        served = await services.adapters.serve(ref, caller.source_token(ref.source, request.api_token), caller.owner)
    await services.engine.register(served.prepared)
    caller.record.generation = served.prepared.fingerprint[:FINGERPRINT_CHARACTERS]
    return served


async def _resolve_merged(services: Services, request: AdapterChoice, caller: Caller) -> ServedAdapter:
    merged = request.merged_adapters
    assert merged is not None
    refs = []
    for index, id in enumerate(merged.ids):
        param = f"merged_adapters.ids[{index}]"
        with _errors_at(param):
            ref = await services.adapters.find(id, request.adapter_source)
        if ref is None:
            raise InvalidRequest("the base model cannot be merged", param=param)
        refs.append(ref)
    weights = merged.weights or [1.0] * len(refs)
    tokens = [caller.source_token(ref.source, request.api_token) for ref in refs]
    caller.record.adapter = "+".join(map(str, refs))
    served = await services.adapters.serve_merged(list(zip(refs, weights, strict=True)), tokens, caller.owner)
    await services.engine.register(served.prepared)
    caller.record.generation = served.prepared.fingerprint[:FINGERPRINT_CHARACTERS]
    return served


@contextmanager
def _errors_at(param: str) -> Iterator[None]:
    """Inside, errors about an adapter have the `param` of the field that names it."""
    try:
        yield
    except MotetError as error:
        if error.param != "model" or param == "model":
            raise
        # A new error: this one may be shared with other requests.
        raise from_info(replace(error.info(), param=param)) from error
