"""Logs and counts each request at its end; a stream ends with its last byte, or when its client disconnects."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from loguru import logger
from quart import Request, Response

from motet.api.http.probe_paths import HEALTH_PATHS, LIVE_PATHS, READY_PATHS
from motet.api.metrics.request_metrics import count_request
from motet.api.metrics.request_record import RequestRecord

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, Scope

KEY = "motet.record"
"""Key of the request's record in the ASGI scope."""

QUIET_ROUTES = ("/", *HEALTH_PATHS, *READY_PATHS, *LIVE_PATHS, "/ping", "/startup", "/metrics")
"""Probes and scrapes: GETs of these are logged at `debug`, unless they are refused, for example without a key."""

STREAM_TYPES = ("text/event-stream", "application/x-ndjson")


def with_access_log(app: ASGIFramework, access_log: bool) -> ASGIFramework:
    """Wrap `app`: each HTTP request has a record, which is logged (if `access_log`) and counted at the end."""

    async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Any:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        record = RequestRecord()
        cast(dict[str, Any], scope)[KEY] = record

        async def watched() -> ASGIReceiveEvent:
            message = await receive()
            if message["type"] == "http.disconnect":
                record.disconnected = True
            return message

        try:
            return await app(scope, watched, send)
        finally:
            finish_record(record, access_log)

    return asgi


def start_record(request: Request) -> RequestRecord:
    """The record of `request`, with its method and route filled in."""
    found = cast(dict[str, Any], request.scope).get(KEY)
    record = found if isinstance(found, RequestRecord) else RequestRecord()
    record.method = request.method
    record.route = request.url_rule.rule if request.url_rule is not None else "other"
    return record


def record_response(record: RequestRecord, response: Response) -> None:
    """Add the response's status, and whether it is a stream."""
    record.status = response.status_code
    if record.status >= 400 and not record.error_code:
        record.error_code = f"http_{record.status}"
    record.stream = (response.content_type or "").startswith(STREAM_TYPES)


def finish_record(record: RequestRecord, access_log: bool) -> None:
    """Count the request, and log it."""
    seconds = time.perf_counter() - record.began
    count_request(record, seconds)
    if not access_log:
        return
    refused = 400 <= record.status < 500
    quiet = record.method in ("GET", "HEAD") and record.route in QUIET_ROUTES and not refused
    logger.bind(**_fields(record, seconds)).log("DEBUG" if quiet else "INFO", "request")


def _fields(record: RequestRecord, seconds: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "key": record.key or None,
        "method": record.method,
        "route": record.route,
        "status": record.status or None,
        "ended": record.ended(),
        "duration_seconds": round(seconds, 4),
    }
    if record.adapter:
        generation = f"@{record.generation}" if record.generation else ""
        fields["adapter"] = record.adapter + generation
    if record.prompt_tokens:
        fields |= {"prompt_tokens": record.prompt_tokens, "cached_tokens": record.cached_tokens}
    if (timing := record.timing) is not None:
        fields["completion_tokens"] = timing.tokens
        if timing.first is not None:
            fields["queue_seconds"] = round(timing.queue_seconds, 4)
            fields["first_token_seconds"] = round(timing.first - timing.began, 4)
        fields["stream"] = record.stream
    return fields
