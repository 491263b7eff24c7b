"""What each route says of itself; the OpenAPI document (api/routes/openapi.py) is made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from motet.api.schema.openai_objects import ErrorBody

STATUSES: Mapping[int, str] = {
    400: "A field is wrong, not supported, or too large for the context.",
    401: "A key or an adapter source's token is missing or wrong.",
    403: "The key or the token may not do this; or, on a server without keys, the Host or Origin is a strange one.",
    404: "No such model, adapter or object.",
    408: "The body did not arrive in time.",
    409: "The object's state does not allow it; the same again will not help.",
    413: "The body is over --max-body.",
    415: "The body is not declared as JSON, or is compressed.",
    422: "The adapter exists and cannot be served.",
    424: "The adapter was not found, may not be used, or cannot be served.",
    429: "Too much is waiting.",
    500: "A fault of the server; the log has the details.",
    503: "The engine or the adapter's source is away; see the header retry-after.",
}

ERRORS = tuple(status for status in STATUSES if status != 424)
"""What a route of OpenAI's that generates may answer with; 424 is for LoRAX's."""

Parameter = dict[str, Any]

TOKEN: Parameter = {
    "name": "x-adapter-token",
    "in": "header",
    "required": False,
    "description": "Token for the adapter source, if the body has no `api_token`. Where the server has no API keys, an "
    "`Authorization: Bearer hf_...` header is taken for it too.",
    "schema": {"type": "string"},
}


def path_parameter(name: str, description: str) -> Parameter:
    """A part of the path; the name is the one in the path's braces."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def query_parameter(name: str, description: str, schema: Mapping[str, Any]) -> Parameter:
    """An optional part of the query."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": dict(schema)}


@dataclass(frozen=True)
class Operation:
    """One method of one route.

    `body` is the request's JSON struct, `answer` the 200's: a struct, a JSON schema, or None for a body that has a
    media type (`media`) and no schema. `chunk` is what the events of a stream hold; `lines` says that a stream is JSON
    lines, each of the kind `answer`. `refused` are the known fields
    that are refused unless their value changes nothing. `errors` are the statuses that may come beside 200 and those
    of every route; their bodies are of the kind `failure`. `parts` are structs that a JSON schema among these refers
    to; `meanings` say what a status means here, if not what it means elsewhere.
    """

    method: Literal["get", "post", "delete"]
    path: str
    summary: str
    tag: str
    answer: type[msgspec.Struct] | Mapping[str, Any] | None
    body: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | Mapping[str, Any] | None = None
    media: str = "application/json"
    example: Mapping[str, Any] | None = None
    refused: Mapping[str, object] | None = None
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    says: str = "The answer."
    unavailable: type[msgspec.Struct] | None = None
    failure: type[msgspec.Struct] | Mapping[str, Any] = ErrorBody
    parts: tuple[type[msgspec.Struct], ...] = ()
    meanings: Mapping[int, str] = field(default_factory=dict)
    multipart: Mapping[str, Any] | None = field(default=None)
    lines: bool = False
