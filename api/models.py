"""GET /v1/models and /v1/models/<id>."""

from __future__ import annotations

from quart import Blueprint, Response

from motet.api.answers import ENCODER, ModelCard, ModelList
from motet.api.caller import current_caller
from motet.api.operations import Operation, path_parameter
from motet.api.services import Services
from motet.core.adapters import AdapterListing

OPERATIONS = (
    Operation(
        "get",
        "/v1/models",
        "The base model and the adapters that can be listed",
        "models",
        ModelList,
        errors=(503,),
        says="All.",
    ),
    Operation(
        "get",
        "/v1/models/{model}",
        "One model",
        "models",
        ModelCard,
        errors=(400, 404, 429, 503),
        parameters=(
            path_parameter("model", "An id or alias from the list. Slashes may be sent as they are or as %2F."),
        ),
        says="The base model or an adapter.",
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/v1/models")
    async def models() -> Response:
        answer = ModelList(data=await model_cards(services))
        return Response(ENCODER.encode(answer), content_type="application/json")

    @blueprint.get("/v1/models/<path:model>")
    async def model(model: str) -> Response:
        answer = await model_card(services, model)
        return Response(ENCODER.encode(answer), content_type="application/json")

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
    ref = await services.adapters.name(model, None)
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
