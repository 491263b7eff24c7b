"""GET /openapi.json: the routes as an OpenAPI 3.1 document. Every schema comes from the structs that the code uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from motet.api import responses, schemas, unsupported

_PREFIX = "#/components/schemas/"
_SCHEMAS = (
    schemas.ChatRequest,
    schemas.CompletionRequest,
    responses.ChatCompletion,
    responses.ChatChunk,
    responses.Completion,
    responses.ModelList,
    responses.ModelCard,
    responses.Health,
    responses.ErrorBody,
)
_ERRORS = {
    400: "A field is wrong, not supported, or too large for the context.",
    401: "The adapter source wants a token, or another one.",
    403: "The token may not use this adapter.",
    404: "No such model or adapter.",
    413: "The body is over --max-body.",
    415: "The body is not declared as JSON.",
    422: "The adapter exists and cannot be served.",
    429: "Too much is waiting.",
    500: "A fault of the server; the log has the details.",
    503: "The engine or the adapter's source is away; see the header retry-after.",
}
_HEADERS = {
    "x-request-id": {
        "description": "The request's id: the client's own, if it sent one, else a new one.",
        "schema": {"type": "string"},
    },
}
_IGNORED = {
    "x-motet-ignored": {
        "description": "Fields of the body that the server does not know, comma-separated.",
        "schema": {"type": "string"},
    },
}
_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "Comes back on the response.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
}
_TOKEN = {
    "name": "x-adapter-token",
    "in": "header",
    "required": False,
    "description": "Token for the adapter source, if the body has no `api_token`. An `Authorization: Bearer hf_...` "
    "header is taken for it too.",
    "schema": {"type": "string"},
}


def _ref(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _PREFIX + kind.__name__}


def _json(description: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": _HEADERS,
        "content": {"application/json": {"schema": _ref(kind)}},
    }


def _errors(statuses: Sequence[int]) -> dict[str, Any]:
    return {str(status): _json(_ERRORS[status], responses.ErrorBody) for status in statuses}


def _refused(table: Mapping[str, object]) -> str:
    fields = ", ".join(f"`{field}`" for field in sorted({*table, "best_of"}))
    return (
        f"A field that is not listed is ignored, and named in the response header x-motet-ignored; but these would "
        f"change the answer and are refused, unless their value changes nothing: {fields}."
    )


def _generate(
    summary: str,
    body: type[msgspec.Struct],
    answer: type[msgspec.Struct],
    chunk: type[msgspec.Struct],
    example: dict[str, Any],
) -> dict[str, Any]:
    success = _json("The answer; with `stream`, server-sent events that end with `data: [DONE]`.", answer)
    success["headers"] = {**_HEADERS, **_IGNORED}
    success["content"]["text/event-stream"] = {
        "schema": {
            "type": "string",
            "description": f"Lines `data: <{chunk.__name__} as JSON>`, each followed by an empty line. A failure in "
            "mid-stream is `data: <ErrorBody as JSON>`, without [DONE].",
            "contentMediaType": "application/json",
            "contentSchema": _ref(chunk),
        }
    }
    return {
        "summary": summary,
        "description": _refused(unsupported.CHAT if body is schemas.ChatRequest else unsupported.COMPLETIONS),
        "tags": ["generate"],
        "parameters": [_TOKEN, _REQUEST_ID],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(body), "example": example}},
        },
        "responses": {"200": success, **_errors(sorted(_ERRORS))},
    }


def _get(summary: str, tag: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "tags": [tag],
        "parameters": [_REQUEST_ID],
        "responses": {"200": answer, **_errors([500])},
    }


def _page(description: str, media: str) -> dict[str, Any]:
    return {"description": description, "headers": _HEADERS, "content": {media: {}}}


def _paths() -> dict[str, Any]:
    model = _get("One model", "models", _json("The base model or a listed adapter.", responses.ModelCard))
    model["parameters"] = [
        {
            "name": "model",
            "in": "path",
            "required": True,
            "description": "An id or alias from the list. Slashes may be sent as they are or as %2F.",
            "schema": {"type": "string"},
        },
        _REQUEST_ID,
    ]
    model["responses"] |= _errors([404, 503])
    health = _get("Can requests be answered now?", "server", _json("Yes.", responses.Health))
    health["responses"]["503"] = _json("No; `reason` says why.", responses.Health)
    models = _get("The base model and the adapters that can be listed", "models", _json("All.", responses.ModelList))
    models["responses"] |= _errors([503])
    return {
        "/v1/chat/completions": {
            "post": _generate(
                "Answer a conversation",
                schemas.ChatRequest,
                responses.ChatCompletion,
                responses.ChatChunk,
                {"model": "", "messages": [{"role": "user", "content": "Tell me about the sea."}], "max_tokens": 32},
            )
        },
        "/v1/completions": {
            "post": _generate(
                "Continue a text",
                schemas.CompletionRequest,
                responses.Completion,
                responses.Completion,
                {"model": "", "prompt": "Once upon a time", "max_tokens": 16},
            )
        },
        "/v1/models": {"get": models},
        "/v1/models/{model}": {"get": model},
        "/health": {"get": health},
        "/openapi.json": {"get": _get("This document", "server", _page("OpenAPI 3.1.", "application/json"))},
        "/docs": {"get": _get("This document as a page", "server", _page("Needs no internet.", "text/html"))},
    }


def openapi_document() -> dict[str, Any]:
    """The whole document, ready to be encoded."""
    _, components = msgspec.json.schema_components(_SCHEMAS, ref_template=_PREFIX + "{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Motet",
            "version": version("motet"),
            "description": "Many LoRA fine-tunes of one base model, served at once through OpenAI's API.",
        },
        "paths": _paths(),
        "components": {"schemas": components},
    }
