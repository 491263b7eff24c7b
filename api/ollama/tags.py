"""GET /api/tags: the list of models in Ollama's shape."""

from __future__ import annotations

import hashlib

from quart import Blueprint, Response

from motet.api.http.json_response import json_response
from motet.api.ollama.errors import OllamaError
from motet.api.ollama.objects import OllamaModel, OllamaTags, details, timestamp
from motet.api.routes.models import model_cards
from motet.api.schema.operations import Operation
from motet.api.services import Services

OPERATIONS = (
    Operation(
        "get",
        "/api/tags",
        "The base model and the adapters that can be listed",
        "ollama",
        OllamaTags,
        statuses=(503,),
        error_response=OllamaError,
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("ollama_tags", __name__)

    @blueprint.get("/api/tags")
    async def tags() -> Response:
        models = [
            OllamaModel(
                name=card.id,
                model=card.id,
                modified_at=timestamp(card.created),
                digest=hashlib.sha256(f"{services.fingerprint}\n{card.id}".encode()).hexdigest(),
                details=details(services, card.parent),
            )
            for card in await model_cards(services)
        ]
        return json_response(OllamaTags(models))

    return blueprint
