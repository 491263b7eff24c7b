"""POST /embed, and /classify and /classify_batch, which are not supported yet."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.lorax.errors import LORAX_ERRORS, MEANINGS, lorax_blueprint
from motet.api.lorax.objects import LoraxEmbedding, LoraxError
from motet.api.lorax.requests import SENT_EVERYWHERE, AdapterParameters, ClassifyRequest, LoraxEmbedRequest
from motet.api.lorax.translate import adapter_fields
from motet.api.routes.embeddings import EmbeddingRequest, embed, unit
from motet.api.schema.operations import TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed, check_adapters, convert, unknown_fields
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest, NotFound

OPERATIONS = (
    Operation(
        "post",
        "/embed",
        "Turn a text into a vector",
        "lorax",
        LoraxEmbedding,
        body=LoraxEmbedRequest,
        example={"inputs": "The sea is wide."},
        statuses=LORAX_ERRORS,
        parameters=(TOKEN_HEADER,),
        error_response=LoraxError,
        status_descriptions=MEANINGS,
    ),
    *(
        Operation(
            "post",
            path,
            "Not offered: the model is not a classifier",
            "lorax",
            None,
            body=ClassifyRequest,
            statuses=LORAX_ERRORS,
            error_response=LoraxError,
            status_descriptions=MEANINGS,
        )
        for path in ("/classify", "/classify_batch")
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = lorax_blueprint("embed", services)

    @blueprint.post("/embed")
    async def embed_text() -> Response:
        async with services.drain.interruptible():
            body = await read_body(_parse)
            if not body.inputs:
                raise InvalidRequest("`inputs` cannot be empty", param="inputs")
            fields = adapter_fields(body.parameters or AdapterParameters())
            request = EmbeddingRequest(input=body.inputs, **fields)
            check_adapters(request)
            _, vectors = await embed(services, request, current_caller())
            answer = LoraxEmbedding(unit(vectors[0]))
            return json_response(answer)

    @blueprint.post("/classify")
    @blueprint.post("/classify_batch")
    async def classify() -> Response:
        raise NotFound("classification is not offered: the model is not a classifier", code=error_codes.NOT_OFFERED)

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[LoraxEmbedRequest]:
    return Parsed(convert(body, LoraxEmbedRequest), unknown_fields(body, LoraxEmbedRequest, SENT_EVERYWHERE))
