"""The routes of OpenAI's Batches: files of requests that run with low priority, with the answers in files."""

from __future__ import annotations

import time
import uuid
from typing import Any

from msgspec import UNSET
from quart import Blueprint, Response, request

from motet.api.batches.objects import BatchList, BatchObject, BatchRequest
from motet.api.batches.status import cancelling
from motet.api.batches.store import BatchStore
from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.routes.files import file_store
from motet.api.schema.operations import Operation, path_parameter, query_parameter
from motet.api.schema.parsing import Parsed, convert, unknown_fields
from motet.api.services import Services
from motet.api.storage.paging import Page
from motet.core import error_codes
from motet.core.errors import InvalidRequest, NotFound

WINDOW_SECONDS = 24 * 3600

_ID = path_parameter("batch_id", "The batch's id.")

OPERATIONS = (
    Operation(
        "post",
        "/v1/batches",
        "Run a file of requests",
        "batches",
        BatchObject,
        body=BatchRequest,
        example={"input_file_id": "file-…", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        statuses=(401, 404, 503),
    ),
    Operation(
        "get",
        "/v1/batches",
        "The caller's batches",
        "batches",
        BatchList,
        statuses=(400, 401, 503),
        parameters=(
            query_parameter("limit", "At most this many.", {"type": "integer", "minimum": 1, "maximum": 100}),
            query_parameter("after", "Begin after the batch of this id.", {"type": "string"}),
        ),
    ),
    Operation(
        "get", "/v1/batches/{batch_id}", "A batch", "batches", BatchObject, statuses=(401, 404), parameters=(_ID,)
    ),
    Operation(
        "post",
        "/v1/batches/{batch_id}/cancel",
        "End a batch",
        "batches",
        BatchObject,
        statuses=(401, 404, 409),
        parameters=(_ID,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("batches", __name__)
    store, files = BatchStore(services.database), file_store(services)

    @blueprint.post("/v1/batches")
    async def create() -> Response:
        batch_request, owner = await read_body(parse_batch), current_caller().owner
        try:
            file = await files.get(owner, batch_request.input_file_id)
        except NotFound:
            raise NotFound(
                f"there is no file {batch_request.input_file_id[:80]!r}",
                param="input_file_id",
                code=error_codes.NOT_FOUND,
            ) from None
        if file.purpose != "batch":
            raise InvalidRequest("the file's purpose must be batch", param="input_file_id")
        now = int(time.time())
        batch = BatchObject(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=batch_request.endpoint,
            input_file_id=batch_request.input_file_id,
            completion_window=batch_request.completion_window,
            status="validating",
            created_at=now,
            expires_at=now + WINDOW_SECONDS,
            metadata=batch_request.metadata,
            output_expires_after=batch_request.output_expires_after or UNSET,
        )
        await store.add(owner, batch)
        return json_response(batch)

    @blueprint.get("/v1/batches")
    async def listing() -> Response:
        page = Page.of(request.args)
        data, more = await store.list(current_caller().owner, page)
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return json_response(BatchList(data=data, first_id=first, last_id=last, has_more=more))

    @blueprint.get("/v1/batches/<batch_id>")
    async def retrieve(batch_id: str) -> Response:
        return json_response(await store.get(current_caller().owner, batch_id))

    @blueprint.post("/v1/batches/<batch_id>/cancel")
    async def cancel(batch_id: str) -> Response:
        return json_response(await store.change(current_caller().owner, batch_id, cancelling))

    return blueprint


def parse_batch(body: dict[str, Any]) -> Parsed[BatchRequest]:
    """A batch request. Raises InvalidRequest."""
    batch_request = convert(body, BatchRequest)
    return Parsed(batch_request, unknown_fields(body, BatchRequest, {}))
