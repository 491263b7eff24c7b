"""POST /generate and /generate_stream, and / and /invocations, which do either."""

from __future__ import annotations

from typing import Any, TypeVar

from quart import Blueprint, Response

from motet.api.http.caller import current_caller
from motet.api.http.request_body import read_body
from motet.api.http.stream_response import joined, stream_response
from motet.api.lorax.errors import LORAX_ERRORS, MEANINGS, lorax_blueprint, lorax_error_frame
from motet.api.lorax.generation import start_lorax, write_stream, write_whole
from motet.api.lorax.objects import LoraxAnswer, LoraxError, LoraxEvent
from motet.api.lorax.requests import SENT_EVERYWHERE, CompatibleRequest, LoraxRequest
from motet.api.routes.response_headers import answer_headers, model_headers
from motet.api.schema.openai_objects import ENCODER
from motet.api.schema.operations import TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed, convert, unknown_fields
from motet.api.services import Services

T = TypeVar("T", bound=LoraxRequest)

_EXAMPLE = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 16}}
_SHARED: dict[str, Any] = {
    "tag": "lorax",
    "example": _EXAMPLE,
    "statuses": LORAX_ERRORS,
    "parameters": (TOKEN_HEADER,),
    "error_response": LoraxError,
    "status_descriptions": MEANINGS,
}
_LIST = {"type": "array", "items": {"$ref": "#/components/schemas/LoraxAnswer"}, "minItems": 1, "maxItems": 1}

OPERATIONS = (
    Operation("post", "/generate", "Continue a text", response=LoraxAnswer, body=LoraxRequest, **_SHARED),
    Operation(
        "post",
        "/generate_stream",
        "Continue a text, token by token",
        response=None,
        body=LoraxRequest,
        event=LoraxEvent,
        media_type="text/event-stream",
        **_SHARED,
    ),
    *(
        Operation(
            "post",
            path,
            "Continue a text, whole or token by token",
            response=_LIST,
            body=CompatibleRequest,
            event=LoraxEvent,
            nested_structs=(LoraxAnswer,),
            **_SHARED,
        )
        for path in ("/", "/invocations")
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = lorax_blueprint("generate", services)

    async def whole(body: LoraxRequest, listed: bool) -> Response:
        lorax = await start_lorax(services, body, current_caller(), stream=False)
        answer = await write_whole(lorax)
        content = ENCODER.encode([answer] if listed else answer)
        headers = answer_headers(lorax.generation, len(body.inputs))
        return Response(content, headers=headers, content_type="application/json")

    async def streamed(body: LoraxRequest) -> Response:
        lorax = await start_lorax(services, body, current_caller(), stream=True)
        response = await stream_response(joined(write_stream(lorax)), services.drain, lorax_error_frame)
        response.headers.update(model_headers(lorax.generation.checked))
        response.headers["x-compute-characters"] = str(len(body.inputs))
        return response

    @blueprint.post("/generate")
    async def generate() -> Response:
        async with services.drain.interruptible():
            return await whole(await read_body(parse_generate), listed=False)

    @blueprint.post("/generate_stream")
    async def generate_stream() -> Response:
        async with services.drain.interruptible():
            return await streamed(await read_body(parse_generate))

    @blueprint.post("/")
    @blueprint.post("/invocations")
    async def either() -> Response:
        async with services.drain.interruptible():
            body = await read_body(parse_compatible)
            return await (streamed(body) if body.stream else whole(body, listed=True))

    return blueprint


def parse_generate(body: dict[str, Any]) -> Parsed[LoraxRequest]:
    """The body of /generate and /generate_stream. Raises InvalidRequest."""
    return _parse(body, LoraxRequest)


def parse_compatible(body: dict[str, Any]) -> Parsed[CompatibleRequest]:
    """The body of / and /invocations. Raises InvalidRequest."""
    return _parse(body, CompatibleRequest)


def _parse(body: dict[str, Any], kind: type[T]) -> Parsed[T]:
    return Parsed(convert(body, kind), unknown_fields(body, kind, SENT_EVERYWHERE))
