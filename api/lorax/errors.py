"""Errors in LoRAX's shape and statuses: 422 for an invalid request, 424 for a failing adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from quart import Blueprint, Response
from werkzeug.exceptions import HTTPException

from motet.api.http.errors import DEFAULT_MAX_BODY, RETRY_AFTER_SECONDS, http_failure, internal_error, note_failure
from motet.api.http.json_response import json_response
from motet.api.http.sse import event_frame
from motet.api.lorax.objects import LoraxError
from motet.api.metrics.request_record import current_record
from motet.api.services import Services
from motet.core.errors import ErrorInfo, JsonInvalid, MotetError

_ADAPTER_STATUSES = (401, 403, 404, 422)
"""Statuses of failures that name a field: an adapter's source or the loader refused the adapter."""

LORAX_ERRORS = (404, 422, 424, 429, 503)
MEANINGS = {
    400: "The body is not JSON.",
    401: "The API key is missing or invalid.",
    403: "On a server without keys, the Host or Origin is a strange one.",
    422: "A field is wrong, or not supported.",
}

PREFIX = "lorax_"
"""The prefix of the names of LoRAX's blueprints."""

_LORAX_NAMES = {
    "prompt": "inputs",
    "input": "inputs",
    "max_tokens": "max_new_tokens",
    "truncate_prompt_tokens": "truncate",
    "logprobs": "return_k_alternatives",
    "n": "best_of",
    "echo": "decoder_input_details",
    "model": "adapter_id",
}
"""Field of a completion or embedding request -> LoRAX's field that it was made from."""

_IN_MESSAGES = re.compile(r"\b(?:max_tokens|(?<=max_tokens or )n|truncate_prompt_tokens|echo)\b")
"""The names that occur in messages and are not ordinary words."""

_KINDS = {
    401: "authentication",
    403: "authentication",
    404: "not_found",
    409: "incomplete_generation",
    429: "overloaded",
    500: "generation",
    503: "generation",
}
_PREFIXES = {"validation": "Input validation error: ", "generation": "Request failed during generation: "}


def lorax_error(info: ErrorInfo, names: Mapping[str, str] = _LORAX_NAMES) -> tuple[int, LoraxError]:
    """Status and body for a failure; `names` maps our names of fields to the caller's."""
    if info.param is not None and info.status in _ADAPTER_STATUSES:
        status, kind = 424, "generation"
    elif info.status in _KINDS:
        status, kind = info.status, _KINDS[info.status]
    else:
        unreadable = info.code == JsonInvalid.code or info.status != 400
        status, kind = info.status if unreadable else 422, "validation"
    body = {"error": _PREFIXES.get(kind, "") + _named(info, names), "error_type": kind}
    return status, msgspec.convert(body, LoraxError)


def _named(info: ErrorInfo, names: Mapping[str, str]) -> str:
    """The message, with the caller's name of the field."""
    if info.param is None:
        return info.message
    own = names.get(info.param, info.param)
    message = _IN_MESSAGES.sub(lambda match: names.get(match[0], match[0]), info.message)
    if own != info.param:
        message = message.removeprefix(f"{info.param}: ")
    return message if own in message else f"{own}: {message}"


def lorax_error_response(info: ErrorInfo, names: Mapping[str, str] = _LORAX_NAMES) -> Response:
    """A failure as a response; `names` maps our names of fields to the caller's."""
    status, body = lorax_error(info, names)
    response = json_response(body, status)
    if status in RETRY_AFTER_SECONDS:
        response.headers["retry-after"] = RETRY_AFTER_SECONDS[status]
    return response


def lorax_error_frame(info: ErrorInfo) -> bytes:
    """A failure as the last frame of a stream."""
    return event_frame(lorax_error(info)[1])


def lorax_blueprint(name: str, services: Services) -> Blueprint:
    """A blueprint whose errors have LoRAX's shape."""
    blueprint = Blueprint(PREFIX + name, __name__)
    max_body = services.settings.size("max_body") or DEFAULT_MAX_BODY

    @blueprint.errorhandler(MotetError)
    async def on_motet_error(error: MotetError) -> Response:
        note_failure(error.info(), current_record())
        return lorax_error_response(error.info())

    @blueprint.errorhandler(HTTPException)
    async def on_http_error(error: HTTPException) -> Response:
        info = http_failure(error, max_body).info()
        note_failure(info, current_record())
        return lorax_error_response(info)

    @blueprint.errorhandler(Exception)
    async def on_fault(error: Exception) -> Response:
        info = internal_error(error)
        current_record().error_code = info.code
        return lorax_error_response(info)

    return blueprint
