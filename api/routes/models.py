"""GET /v1/models and /v1/models/<id>: the base model and the adapters, for OpenAI's and Anthropic's clients."""

from __future__ import annotations

from quart import Blueprint, Response, request

from motet.api.anthropic.errors import VERSION_HEADER
from motet.api.anthropic.models import MAX_LIMIT, anthropic_model, anthropic_page
from motet.api.anthropic.objects import AnthropicError, AnthropicModel, AnthropicModelList
from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.schema.openai_objects import ErrorBody, ModelCard, ModelList
from motet.api.schema.operations import Operation, Parameter, path_parameter, query_parameter
from motet.api.services import Services
from motet.core.adapter_source import AdapterListing

_FOR_ANTHROPIC = "With `anthropic-version`:"
_LIMIT = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}
_VERSION: Parameter = {
    "name": VERSION_HEADER,
    "in": "header",
    "required": False,
    "description": "Anthropic's clients send it; the answer then has the shape of Anthropic's API.",
    "schema": {"type": "string"},
}
_FAILURE = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ErrorBody", "AnthropicError")]}

OPERATIONS = (
    Operation(
        "get",
        "/v1/models",
        "The base model and the adapters that can be listed",
        "models",
        {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ModelList", "AnthropicModelList")]},
        statuses=(400, 503),
        parameters=(
            _VERSION,
            query_parameter("limit", f"{_FOR_ANTHROPIC} at most this many; 20 by default.", _LIMIT),
            query_parameter("after_id", f"{_FOR_ANTHROPIC} only the models after this one.", {"type": "string"}),
            query_parameter("before_id", f"{_FOR_ANTHROPIC} only the models before this one.", {"type": "string"}),
        ),
        description="All.",
        error_response=_FAILURE,
        nested_structs=(ModelList, AnthropicModelList, ErrorBody, AnthropicError),
    ),
    Operation(
        "get",
        "/v1/models/{model}",
        "One model",
        "models",
        {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ModelCard", "AnthropicModel")]},
        statuses=(400, 404, 429, 503),
        parameters=(
            _VERSION,
            path_parameter("model", "An id or alias from the list. Slashes may be sent as they are or as %2F."),
        ),
        description="The base model or an adapter.",
        error_response=_FAILURE,
        nested_structs=(ModelCard, AnthropicModel, ErrorBody, AnthropicError),
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/v1/models")
    async def models() -> Response:
        cards = await model_cards(services)
        answer = anthropic_page(cards, request.args) if VERSION_HEADER in request.headers else ModelList(data=cards)
        return json_response(answer)

    @blueprint.get("/v1/models/<path:model>")
    async def model(model: str) -> Response:
        card = await model_card(services, model)
        answer = anthropic_model(card) if VERSION_HEADER in request.headers else card
        return json_response(answer)

    return blueprint


async def model_cards(services: Services) -> list[ModelCard]:
    """The base model, then every adapter that its source can list."""
    base = ModelCard(
        id=services.model_name,
        created=services.started,
        root=services.model_name,
        max_model_len=_context(services),
    )
    return [base, *(_adapter_card(services, entry) for entry in await services.adapters.listing())]


async def model_card(services: Services, model: str) -> ModelCard:
    """The base model, or an adapter by its id or alias, listed or not.

    Raises NotFound, or Unauthenticated or Forbidden if the source does not show it to this caller.
    """
    ref = await services.adapters.find(model, None)
    cards = await model_cards(services)
    if ref is None:
        return cards[0]
    for card in cards[1:]:
        if card.id == str(ref):
            return card
    await services.adapters.resolve(ref, current_caller().source_token(ref.source))
    return _adapter_card(services, AdapterListing(ref))


def _adapter_card(services: Services, entry: AdapterListing) -> ModelCard:
    return ModelCard(
        id=str(entry.ref),
        created=services.started,
        root=str(entry.ref),
        parent=services.model_name,
        alias=entry.alias,
        max_model_len=_context(services),
    )


def _context(services: Services) -> int | None:
    return services.engine.model.max_context if services.engine.model is not None else None
