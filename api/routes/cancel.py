"""POST /v1/requests/<id>/cancel: ends a running request, by its x-request-id or by its answer's id.

An admin key may end any request, by KEY_NAME:X_REQUEST_ID.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from quart import Blueprint, Response

from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.schema.operations import Operation, path_parameter
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import NotFound

# Only those who received an answer know its id. Nothing else may look like one: a key may have a name such as
# `cmpl-svc`, and OWNER:REQUEST_ID names the requests of that key.
_ANSWER_ID = re.compile(r"(?:chatcmpl-|cmpl-|resp_|embd-|msg_)[0-9a-f]{32}")


class CancelledRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was ended; its client gets an error."""

    id: str
    object: Literal["request.cancelled"] = "request.cancelled"
    sequences: int


OPERATIONS = (
    Operation(
        "post",
        "/v1/requests/{request_id}/cancel",
        "End a running request",
        "server",
        CancelledRequest,
        statuses=(404, 503),
        parameters=(path_parameter("request_id", "Its x-request-id, or the id of its answer."),),
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("cancelling", __name__)

    @blueprint.post("/v1/requests/<request_id>/cancel")
    async def cancel(request_id: str) -> Response:
        caller = current_caller()
        owner, colon, _ = request_id.partition(":")
        group = request_id if colon and (caller.admin or owner == caller.owner) else f"{caller.owner}:{request_id}"
        sequences = await services.engine.cancel(group)
        if not sequences and _ANSWER_ID.fullmatch(request_id):
            sequences = await services.engine.cancel(request_id)
        if not sequences:
            raise NotFound("no running request has this id", param="request_id", code=error_codes.NOT_FOUND)
        answer = CancelledRequest(id=request_id, sequences=sequences)
        return json_response(answer)

    return blueprint
