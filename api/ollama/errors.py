"""Errors in the shape of Ollama's API."""

from __future__ import annotations

import msgspec
from quart import Request, Response

from motet.api.http.errors import add_retry_headers
from motet.api.http.json_response import json_response
from motet.api.schema.openai_objects import ENCODER
from motet.core.errors import ErrorInfo

PREFIX = "/api/"


class OllamaError(msgspec.Struct, frozen=True):
    """The error; the message names the field."""

    error: str


def is_ollama(request: Request) -> bool:
    """Whether the request comes from a client of Ollama's API."""
    return request.path.startswith(PREFIX)


def _body(info: ErrorInfo) -> OllamaError:
    named = info.param is None or info.param in info.message
    return OllamaError(info.message if named else f"{info.param}: {info.message}")


def ollama_error_response(info: ErrorInfo) -> Response:
    """A failure as a response."""
    response = json_response(_body(info), info.status)
    add_retry_headers(response)
    return response


def ollama_error_line(info: ErrorInfo) -> bytes:
    """A failure as the last line of a stream."""
    return ENCODER.encode(_body(info)) + b"\n"
