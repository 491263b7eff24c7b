"""Builds the OpenAPI 3.1 document of the routes. Every schema comes from the structs that the code uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import msgspec

from motet.api.http.auth import PUBLIC_PATHS
from motet.api.http.errors import RETRY_AFTER_SECONDS
from motet.api.schema.openai_objects import ErrorBody
from motet.api.schema.operations import STATUSES, Operation

_PREFIX = "#/components/schemas/"
_HEADERS = {
    "x-request-id": {
        "description": "The request's id: the client's own, if it sent one, else a new one.",
        "schema": {"type": "string"},
    },
}
_IGNORED = {
    "x-motet-ignored": {
        "description": "Fields of the body that were ignored, comma-separated.",
        "schema": {"type": "string"},
    },
}
_RETRY = {
    "retry-after": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}},
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, if the server has any."},
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same key in another header.",
    },
}
_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "Returned on the response.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
}


def _schema(kind: type[msgspec.Struct] | Mapping[str, Any]) -> dict[str, Any]:
    return {"$ref": _PREFIX + kind.__name__} if isinstance(kind, type) else dict(kind)


def _json(description: str, kind: type[msgspec.Struct] | Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "headers": _HEADERS, "content": {"application/json": {"schema": _schema(kind)}}}


def _failure(operation: Operation, status: int) -> dict[str, Any]:
    answer = _json({**STATUSES, **operation.status_descriptions}[status], operation.error_response)
    return answer | ({"headers": {**_HEADERS, **_RETRY}} if status in RETRY_AFTER_SECONDS else {})


def _is_open(operation: Operation) -> bool:
    return operation.method == "get" and operation.path in PUBLIC_PATHS


def _operation_id(operation: Operation) -> str:
    """A name for generated clients' functions: `post_v1_chat_completions`."""
    words = re.findall(r"\w+", operation.path) or ["root"]
    return "_".join((operation.method, *words))


def _refused(table: Mapping[str, object]) -> str:
    fields = ", ".join(f"`{field}`" for field in sorted(table))
    return (
        "Unknown fields are ignored and listed in the response header x-motet-ignored. These fields would change the "
        f"answer and are refused, unless their value has no effect: {fields}."
    )


def _success(operation: Operation) -> dict[str, Any]:
    schema = {} if operation.response is None else {"schema": _schema(operation.response)}
    success: dict[str, Any] = {
        "description": operation.description,
        "headers": _HEADERS if operation.body is None else {**_HEADERS, **_IGNORED},
        "content": {operation.media_type: schema},
    }
    if operation.event is not None:
        success["content"]["text/event-stream"] = {"schema": _event(operation.event, operation.error_response)}
    if operation.json_lines:
        success["content"]["application/x-ndjson"] = {}
    return success


def _event(chunk: type[msgspec.Struct] | Mapping[str, Any], failure: type[msgspec.Struct] | Mapping[str, Any]) -> Any:
    """An event of a stream, as an object of its fields."""
    data = {
        "description": "JSON of this kind, or [DONE] where that ends the stream; the error's object if the request "
        "fails in mid-stream.",
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_schema(chunk), _schema(failure)]},
    }
    return {
        "description": "With `stream`: server-sent events, each with these fields.",
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["data"],
    }


def _request_body(operation: Operation) -> dict[str, Any]:
    if operation.multipart is not None:
        return {"required": True, "content": {"multipart/form-data": {"schema": dict(operation.multipart)}}}
    assert operation.body is not None
    content: dict[str, Any] = {"schema": _schema(operation.body)}
    if operation.example is not None:
        content["example"] = dict(operation.example)
    return {"required": True, "content": {"application/json": content}}


def _shared_errors(operation: Operation) -> Iterator[int]:
    """The statuses that routes share."""
    yield 500
    if not _is_open(operation):
        yield from (401, 403)
    if operation.body is not None or operation.multipart is not None:
        yield from (400, 408, 413)
    if operation.body is not None:
        yield 415


def _operation(operation: Operation) -> dict[str, Any]:
    errors = sorted({*operation.statuses, *_shared_errors(operation)})
    entry: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*operation.parameters, _REQUEST_ID],
        "responses": {
            "200": _success(operation),
            **{str(status): _failure(operation, status) for status in errors},
        },
    }
    if operation.unsupported is not None:
        entry["description"] = _refused(operation.unsupported)
    if operation.body is not None or operation.multipart is not None:
        entry["requestBody"] = _request_body(operation)
    if operation.unavailable is not None:
        entry["responses"]["503"] = _json("Not now; `reason` says why.", operation.unavailable)
        entry["responses"]["503"]["headers"] = {**_HEADERS, **_RETRY}
    if _is_open(operation):
        entry["security"] = []
    return entry


def openapi_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document for `operations`, ready to be encoded."""
    paths: dict[str, dict[str, Any]] = {}
    kinds: dict[str, type[msgspec.Struct]] = {ErrorBody.__name__: ErrorBody}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
        kinds_used = (
            operation.body,
            operation.response,
            operation.event,
            operation.unavailable,
            operation.error_response,
        )
        for kind in (*kinds_used, *operation.nested_structs):
            if isinstance(kind, type):
                assert kinds.setdefault(kind.__name__, kind) is kind, f"two structs have the name {kind.__name__}"
    _, components = msgspec.json.schema_components(kinds.values(), ref_template=_PREFIX + "{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Motet",
            "version": version("motet"),
            "description": "Many LoRA fine-tunes of one base model, served at once through OpenAI's API.",
        },
        "security": [*({name: []} for name in _KEYS), {}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _KEYS},
    }
