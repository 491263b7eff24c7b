"""Errors in the shape and with the types of Anthropic's API. The statuses are those of OpenAI's routes."""

from __future__ import annotations

from quart import Quart, Request, Response, g, request

from motet.api.anthropic.objects import AnthropicError, AnthropicErrorObject
from motet.api.http.errors import add_retry_headers
from motet.api.http.json_response import json_response
from motet.api.http.sse import event_frame
from motet.core.errors import ContextExceeded, ErrorInfo

PATH = "/v1/messages"
VERSION_HEADER = "anthropic-version"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

# Claude Code compacts the conversation when a message begins with this.
TOO_LONG = "prompt is too long: "


def is_anthropic(request: Request) -> bool:
    """Whether the request comes from a client of Anthropic's API."""
    return request.path == PATH or request.path.startswith(f"{PATH}/") or VERSION_HEADER in request.headers


def anthropic_error(info: ErrorInfo, request_id: str | None) -> AnthropicError:
    """The body for a failure of the request with this id."""
    kind = _TYPES.get(info.status, "invalid_request_error" if info.status < 500 else "api_error")
    return AnthropicError(error=AnthropicErrorObject(kind, _message(info)), request_id=request_id)


def _message(info: ErrorInfo) -> str:
    """The message, which names the field, since the shape has no other place for it."""
    if info.code == ContextExceeded.code:
        return TOO_LONG + info.message
    if info.param is None or info.param in info.message:
        return info.message
    return f"{info.param}: {info.message}"


def anthropic_error_frame(info: ErrorInfo, request_id: str | None) -> bytes:
    """A failure as the last event of a stream."""
    return event_frame(anthropic_error(info, request_id), "error")


def anthropic_error_response(info: ErrorInfo) -> Response:
    """A failure of the current request as a response."""
    body = anthropic_error(info, g.get("request_id"))
    response = json_response(body, info.status)
    add_retry_headers(response)
    return response


def install_request_id(app: Quart) -> None:
    """Add the request's id to responses to Anthropic's clients, in the header that they read."""

    @app.after_request
    async def add_request_id(response: Response) -> Response:
        if is_anthropic(request):
            response.headers["request-id"] = g.request_id
        return response
