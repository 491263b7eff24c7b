"""Which adapter a request means: `model`, `adapter_id` or `merged_adapters`, found and ready to be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from motet.api.adapters.messages import ServedAdapter
from motet.api.http.caller import Caller
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.services import Services
from motet.core.errors import InvalidRequest, MotetError, from_info

FINGERPRINT_CHARACTERS = 12
"""Of an adapter's fingerprint: enough to tell an adapter's contents apart in logs."""


def adapter_name(request: AdapterChoice) -> str:
    """What `request` calls its adapter, if it names one; gateways route by that."""
    return "" if request.merged_adapters else request.adapter_id or request.model


async def resolve_adapter(services: Services, request: AdapterChoice, caller: Caller) -> ServedAdapter | None:
    """The request's adapter, loaded and known to the engine; None for the base. Raises MotetError.

    `model` names it, or, if that is the base, `adapter_id` or `merged_adapters`.
    """
    source = request.adapter_source
    other = "adapter_id" if request.adapter_id else "merged_adapters" if request.merged_adapters else None
    ref = await services.adapters.name(request.model, None if other else source)
    if ref is not None and other:
        raise InvalidRequest(f"{other} is for requests whose model is the base; model names an adapter", param=other)
    if request.merged_adapters is not None:
        return await _merged(services, request, caller)
    with _called(other or "model"):
        if request.adapter_id:
            ref = await services.adapters.name(request.adapter_id, source)
        if ref is None:
            return None
        caller.record.adapter = str(ref)
        served = await services.adapters.serve(ref, caller.source_token(ref.source, request.api_token), caller.owner)
    caller.record.generation = served.prepared.fingerprint[:FINGERPRINT_CHARACTERS]
    return served


async def _merged(services: Services, request: AdapterChoice, caller: Caller) -> ServedAdapter:
    merged = request.merged_adapters
    assert merged is not None
    refs = []
    for index, id in enumerate(merged.ids):
        where = f"merged_adapters.ids[{index}]"
        with _called(where):
            ref = await services.adapters.name(id, request.adapter_source)
        if ref is None:
            raise InvalidRequest("the base model cannot be merged", param=where)
        refs.append(ref)
    weights = merged.weights or [1.0] * len(refs)
    tokens = [caller.source_token(ref.source, request.api_token) for ref in refs]
    caller.record.adapter = "+".join(map(str, refs))
    served = await services.adapters.serve_merged(list(zip(refs, weights, strict=True)), tokens, caller.owner)
    caller.record.generation = served.prepared.fingerprint[:FINGERPRINT_CHARACTERS]
    return served


@contextmanager
def _called(param: str) -> Iterator[None]:
    """Inside, errors about an adapter name `param`, the field that it was named by."""
    try:
        yield
    except MotetError as error:
        if error.param != "model" or param == "model":
            raise
        # Another error: this one may be told to others, too.
        raise from_info(replace(error.info(), param=param)) from error
