"""POST /v1/embeddings: turns texts into unit vectors by pooling the last hidden states, with or without an adapter."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta
from quart import Blueprint, Response

from motet.api.generating.adapter_choice import adapter_name, resolve_adapter
from motet.api.generating.context_limit import prompt_too_long
from motet.api.generating.logprobs import packed
from motet.api.generating.prompts import token_lists
from motet.api.generating.request_params import priority, truncated
from motet.api.http.caller import Caller, current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed, check_adapters, convert, unknown_fields
from motet.api.schema.request_fields import Positive, TokenId
from motet.api.schema.unsupported_fields import EMBEDDINGS, refuse_unsupported
from motet.api.services import Services
from motet.core.errors import InvalidRequest
from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 300_000
"""Limit per request, over all of its inputs; the same as OpenAI's."""

MAX_AT_ONCE = 64
"""Inputs of one request that the engine has at once, so that other requests get their turn."""

T = TypeVar("T")


class EmbeddingRequest(AdapterChoice, frozen=True, kw_only=True):
    """Body of POST /v1/embeddings."""

    input: Annotated[
        str | list[str | TokenId | list[TokenId]],
        Meta(
            description="A string, a list of strings, a list of token ids, or a list of such lists; not mixed.",
            examples=["The sea is wide.", ["One text", "and another"]],
        ),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Meta(description="base64 encodes little-endian 32-bit floats.")
    ] = None
    dimensions: Annotated[
        Positive | None, Meta(description="Keep this many of the vector's numbers, scaled to length 1 again.")
    ] = None
    user: Annotated[str | None, Meta(description="Accepted; has no effect.")] = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One input's vector, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


OPERATIONS = (
    Operation(
        "post",
        "/v1/embeddings",
        "Texts to vectors",
        "embeddings",
        EmbeddingList,
        body=EmbeddingRequest,
        example={"model": "", "input": ["The sea is wide.", "A ship sails."]},
        unsupported=EMBEDDINGS,
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("embeddings", __name__)

    @blueprint.post("/v1/embeddings")
    async def embeddings() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_embedding)
            answer = await answer_embedding(services, request, current_caller())
            return json_response(answer)

    return blueprint


def parse_embedding(body: dict[str, Any]) -> Parsed[EmbeddingRequest]:
    """An embedding request; what depends on the model is checked later. Raises InvalidRequest."""
    refuse_unsupported(body, EMBEDDINGS)
    request = convert(body, EmbeddingRequest)
    check_adapters(request)
    return Parsed(request, unknown_fields(body, EmbeddingRequest, EMBEDDINGS))


async def answer_embedding(services: Services, request: EmbeddingRequest, caller: Caller) -> EmbeddingList:
    """The vectors of `request`. Raises MotetError."""
    size = services.model().hidden_size
    if request.dimensions is not None and request.dimensions > size:
        raise InvalidRequest(
            f"dimensions is {request.dimensions}, but the model's vectors have only {size}", param="dimensions"
        )
    prompts, vectors = await embed(services, request, caller)
    data = []
    for index, vector in enumerate(vectors):
        numbers = unit(vector, request.dimensions)
        as_bytes = request.encoding_format == "base64"
        value = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode() if as_bytes else numbers
        data.append(packed(Embedding(index=index, embedding=value)))
        if index % MAX_AT_ONCE == 0:  # thousands of vectors take a while
            await asyncio.sleep(0)
    count = sum(map(len, prompts))
    return EmbeddingList(data=data, model=request.model, usage=EmbeddingUsage(count, count))


async def embed(
    services: Services, request: EmbeddingRequest, caller: Caller
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """The token ids of every input, and its pooled hidden states as they are. Raises MotetError."""
    model = services.model()
    request_priority = priority(request, caller)
    adapter = await resolve_adapter(services, request, caller)
    prompts = await _prompts(services.for_request(adapter, caller), request, model.max_context)
    group, id = f"{caller.owner}:{caller.request_id}", f"embd-{uuid.uuid4().hex}"
    gate = asyncio.Semaphore(MAX_AT_ONCE)
    fingerprint = adapter.prepared.fingerprint if adapter else None
    caller.record.prompt_tokens = sum(map(len, prompts))
    pool = pooling(services.settings.pooling, Path(model.directory))

    async def one(index: int, prompt: tuple[int, ...]) -> tuple[float, ...]:
        async with gate:
            params = SamplingParams(max_tokens=0)
            sequence = AddRequest(
                f"{id}-{index}",
                prompt,
                params,
                fingerprint,
                group=group,
                priority=request_priority,
                pooling=pool,
                model=adapter_name(request),
            )
            return await services.engine.embed(sequence)

    return prompts, await _all([one(index, prompt) for index, prompt in enumerate(prompts)])


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result; the first failure, or a cancellation, ends all the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _prompts(services: Services, request: EmbeddingRequest, context: int) -> list[tuple[int, ...]]:
    inputs = request.input if isinstance(request.input, list) else [request.input]
    if len(inputs) > MAX_INPUTS and not all(isinstance(entry, int) for entry in inputs):
        raise InvalidRequest(f"input has {len(inputs)} entries; the maximum is {MAX_INPUTS}", param="input")
    cut = request.truncate_prompt_tokens is not None
    prompts = await token_lists(services, request.input, "input", truncated=cut)
    prompts = [truncated(request, prompt, context) for prompt in prompts]
    for index, prompt in enumerate(prompts):
        if len(prompt) >= context:
            param = "input" if len(prompts) == 1 else f"input[{index}]"
            raise prompt_too_long(context - 1, len(prompt), param, ", or set truncate_prompt_tokens")
    if (count := sum(map(len, prompts))) > MAX_INPUT_TOKENS:
        raise InvalidRequest(f"input has {count} tokens; the maximum is {MAX_INPUT_TOKENS}", param="input")
    return prompts


def pooling(setting: str, directory: Path) -> Literal["last", "mean"]:
    """How hidden states become one vector: as set, else as the model's 1_Pooling/config.json says, else `last`."""
    if setting != "auto":
        return "mean" if setting == "mean" else "last"
    try:
        config: Mapping[str, object] = json.loads((directory / "1_Pooling" / "config.json").read_bytes())
    except (OSError, ValueError):
        return "last"
    return "mean" if config.get("pooling_mode_mean_tokens") else "last"


def unit(vector: Sequence[float], dimensions: int | None = None) -> list[float]:
    """The first `dimensions` numbers of `vector` (all by default), scaled to length 1."""
    numbers = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in numbers)) or 1.0
    return [x / length for x in numbers]
