"""GET /api/version: the version of Ollama's API."""

from __future__ import annotations

from quart import Blueprint, Response

from motet.api.http.json_response import json_response
from motet.api.ollama.errors import OllamaError
from motet.api.ollama.objects import OllamaVersion
from motet.api.schema.operations import Operation
from motet.api.services import Services

VERSION = "0.9.0"
"""The version of Ollama with this API. Editors refuse versions before 0.6.4."""

OPERATIONS = (
    Operation(
        "get", "/api/version", "The version of Ollama's API", "ollama", OllamaVersion, error_response=OllamaError
    ),
)


def routes(services: Services) -> Blueprint:
    """The route; it does not use `services`."""
    blueprint = Blueprint("ollama_version", __name__)

    @blueprint.get("/api/version")
    async def api_version() -> Response:
        return json_response(OllamaVersion(VERSION))

    return blueprint
