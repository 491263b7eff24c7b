"""POST /api/show: one model in Ollama's shape."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from quart import Blueprint, Response

from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.ollama.errors import OllamaError
from motet.api.ollama.objects import OllamaShow, architecture, details, timestamp
from motet.api.ollama.requests import model_name, parsed
from motet.api.routes.models import model_card
from motet.api.schema.openai_objects import ModelCard
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest


class ShowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /api/show."""

    model: Annotated[Annotated[str, Meta(max_length=1024)] | None, Meta(description="The model; required.")] = None
    name: Annotated[Annotated[str, Meta(max_length=1024)] | None, Meta(description="The older name of `model`.")] = None
    verbose: Annotated[bool | None, Meta(description="Accepted; has no effect.")] = None


OPERATIONS = (
    Operation(
        "post",
        "/api/show",
        "One model",
        "ollama",
        OllamaShow,
        body=ShowRequest,
        example={"model": ""},
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
        error_response=OllamaError,
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("ollama_show", __name__)

    @blueprint.post("/api/show")
    async def show() -> Response:
        body = await read_body(_parse)
        card = await model_card(services, model_name(services, body.model or body.name or ""))
        return json_response(_show(services, card))

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[ShowRequest]:
    result = parsed(body, ShowRequest)
    if result.request.model is None and result.request.name is None:
        raise InvalidRequest("model is missing", param="model", code=error_codes.MISSING_REQUIRED_PARAMETER)
    return result


def _show(services: Services, card: ModelCard) -> OllamaShow:
    model, family = services.model(), architecture(services)
    return OllamaShow(
        details=details(services, card.parent),
        model_info={
            "general.architecture": family,
            "general.basename": card.alias or card.id,
            f"{family}.context_length": model.max_context,
            f"{family}.embedding_length": model.hidden_size,
        },
        capabilities=["completion", "tools"],
        modified_at=timestamp(card.created),
    )
