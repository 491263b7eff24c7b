"""POST /v1/requests/<id>/cancel: end a request that runs, by its x-request-id or by its answer's id.

An admin key may end everybody's: by KEY_NAME:X_REQUEST_ID.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from quart import Blueprint, Response

from motet.api.http.caller import current_caller
from motet.api.schema.openai_objects import ENCODER
from motet.api.schema.operations import Operation, path_parameter
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import NotFound

# The ids of answers are secrets of those who got them. Nothing else may pass for one: a key may have a name such as
# `cmpl-svc`, and OWNER:REQUEST_ID names the requests of that key.
_ANSWER = re.compile(r"(?:chatcmpl-|cmpl-|resp_|embd-|msg_)[0-9a-f]{32}")


class CancelledRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was ended: whoever waits for its answer gets an error."""

    id: str
    object: Literal["request.cancelled"] = "request.cancelled"
    sequences: int


OPERATIONS = (
    Operation(
        "post",
        "/v1/requests/{request_id}/cancel",
        "End a request that runs",
        "server",
        CancelledRequest,
        errors=(404, 503),
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
        own = request_id if colon and (caller.admin or owner == caller.owner) else f"{caller.owner}:{request_id}"
        sequences = await services.engine.cancel(own)
        if not sequences and _ANSWER.fullmatch(request_id):
            sequences = await services.engine.cancel(request_id)
        if not sequences:
            raise NotFound("no request of this id runs now", param="request_id", code=error_codes.NOT_FOUND)
        answer = CancelledRequest(id=request_id, sequences=sequences)
        return Response(ENCODER.encode(answer), content_type="application/json")

    return blueprint
