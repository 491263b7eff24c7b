"""Describes routes for the OpenAPI document, which api/routes/openapi.py generates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from motet.api.schema.openai_objects import ErrorBody

STATUSES: Mapping[int, str] = {
    400: "A field is wrong, not supported, or too large for the context.",
    401: "A key or an adapter source's token is missing or wrong.",
    403: "The key or the token may not do this; or, on a server without keys, the Host or Origin is not allowed.",
    404: "No such model, adapter or object.",
    408: "The body did not arrive in time.",
    409: "The object's state does not allow it; retrying does not help.",
    413: "The body is over --max-body.",
    415: "The body is not declared as JSON, or is compressed.",
    422: "The adapter exists and cannot be served.",
    424: "The adapter was not found, may not be used, or cannot be served.",
    429: "Too many requests are waiting.",
    500: "A bug in the server; the log has the details.",
    503: "The engine or the adapter's source is not available; see the header retry-after.",
}

GENERATION_STATUSES = tuple(status for status in STATUSES if status != 424)
"""The error statuses of OpenAI's generating routes; only LoRAX's have 424."""

Parameter = dict[str, Any]

TOKEN_HEADER: Parameter = {
    "name": "x-adapter-token",
    "in": "header",
    "required": False,
    "description": "Token for the adapter source, if the body has no `api_token`. Where the server has no API keys, an "
    "`Authorization: Bearer hf_...` header works, too.",
    "schema": {"type": "string"},
}


def path_parameter(name: str, description: str) -> Parameter:
    """A parameter in the path, by its name in braces there."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def query_parameter(name: str, description: str, schema: Mapping[str, Any]) -> Parameter:
    """An optional query parameter."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": dict(schema)}


@dataclass(frozen=True)
class Operation:
    """One method of one route, as the OpenAPI document describes it.

    - `response` is the body of a 200: a struct, a JSON schema, or None for a body that has only a `media_type`. `body`
      is the request's JSON struct, `multipart` the schema of a form, `event` the data of a stream's events.
      `json_lines`: a stream is JSON lines, each of the type `response`.
    - `unsupported` are the fields of `api/schema/unsupported_fields.py` for this route.
    - `statuses` are those possible beside 200 and those of every route, with bodies of the type `error_response`;
      `status_descriptions` replace their descriptions in STATUSES. `unavailable` is the body of a 503.
    - `nested_structs` are structs to which a JSON schema among these refers.
    """

    method: Literal["get", "post", "delete"]
    path: str
    summary: str
    tag: str
    response: type[msgspec.Struct] | Mapping[str, Any] | None
    body: type[msgspec.Struct] | None = None
    event: type[msgspec.Struct] | Mapping[str, Any] | None = None
    media_type: str = "application/json"
    example: Mapping[str, Any] | None = None
    unsupported: Mapping[str, object] | None = None
    statuses: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    description: str = "The answer."
    unavailable: type[msgspec.Struct] | None = None
    error_response: type[msgspec.Struct] | Mapping[str, Any] = ErrorBody
    nested_structs: tuple[type[msgspec.Struct], ...] = ()
    status_descriptions: Mapping[int, str] = field(default_factory=dict)
    multipart: Mapping[str, Any] | None = field(default=None)
    json_lines: bool = False
