"""Turns every exception into a response with OpenAI's error object, a status and headers."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from loguru import logger
from quart import Quart, Response
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from motet.api.http.json_response import json_response
from motet.api.http.route_hints import no_route_message
from motet.api.metrics.request_record import RequestRecord, current_record
from motet.api.schema.openai_objects import error_body
from motet.core import error_codes, errors
from motet.core.errors import ErrorInfo, MotetError

DEFAULT_MAX_BODY = 4 << 20
RETRY_AFTER_SECONDS = {429: "1", 503: "2"}


def internal_error(error: BaseException) -> ErrorInfo:
    """The error for a bug in the server: the client gets a number, under which the log has the traceback.

    A RecursionError is a 400: only nested input causes deep recursion.
    """
    if isinstance(error, RecursionError):
        return errors.InvalidRequest("the request is nested too deeply", code=error_codes.INVALID_JSON).info()
    number = secrets.token_hex(4)
    logger.opt(exception=error).error("internal error {}", number)
    return MotetError(f"internal error {number}; the server's log has the details").info()


def note_failure(info: ErrorInfo, record: RequestRecord) -> None:
    """Record and log the failure; a 4xx's message may quote the request and is not logged."""
    record.error_code = info.code
    line = logger.bind(request_id=record.request_id, status=info.status, code=info.code, param=info.param)
    if info.status >= 500:
        line.error("request failed: {}", info.message)
    else:
        line.debug("request refused")


def error_response(info: ErrorInfo) -> Response:
    """The response for `info`."""
    response = json_response(error_body(info), info.status)
    add_retry_headers(response)
    return response


def add_retry_headers(response: Response) -> None:
    """Add the headers that say whether and when to retry."""
    if response.status_code in RETRY_AFTER_SECONDS:
        response.headers["retry-after"] = RETRY_AFTER_SECONDS[response.status_code]
    if response.status_code == 409:  # SDKs would retry, which cannot help
        response.headers["x-should-retry"] = "false"


def http_failure(error: HTTPException, max_body: int) -> MotetError:
    """The MotetError for an error of the web framework or its routing."""
    match error.code:
        case 404:
            return errors.NotFound(no_route_message(), code=error_codes.NOT_FOUND)
        case 405:
            return errors.MethodNotAllowed(f"this route accepts only {_methods(error)}")
        case 413:
            return errors.PayloadTooLarge(f"the body is larger than {max_body} bytes (--max-body)")
        case 408:
            failure: MotetError = errors.InvalidRequest(
                "the body did not arrive in time", code=error_codes.REQUEST_TIMEOUT
            )
            failure.status = 408
        case _:
            failure = errors.InvalidRequest(error.description or error.name, code=error_codes.BAD_REQUEST)
            failure.status = error.code or 400
    return failure


def _methods(error: HTTPException) -> str:
    allowed = error.valid_methods if isinstance(error, WerkzeugMethodNotAllowed) else None
    return " and ".join(sorted({*(allowed or ())} - {"HEAD", "OPTIONS"})) or "other methods"


def install_error_handlers(app: Quart, max_body: int, respond: Callable[[ErrorInfo], Response]) -> None:
    """Handle every exception that no blueprint of `app` handles; `respond` makes the response."""

    async def on_motet_error(error: MotetError) -> Response:
        note_failure(error.info(), current_record())
        return respond(error.info())

    async def on_http_error(error: HTTPException) -> Response:
        info = http_failure(error, max_body).info()
        note_failure(info, current_record())
        response = respond(info)
        if isinstance(error, WerkzeugMethodNotAllowed) and error.valid_methods:
            response.headers["allow"] = ", ".join(sorted(error.valid_methods))
        return response

    async def on_fault(error: Exception) -> Response:
        info = internal_error(error)
        current_record().error_code = info.code
        return respond(info)

    app.register_error_handler(MotetError, on_motet_error)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(Exception, on_fault)
