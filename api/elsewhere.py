"""OpenAI's routes that this server has not: a 404 that says so, rather than one that leaves one guessing."""

from __future__ import annotations

from quart import Blueprint, Response

from motet.api.near_misses import near_miss, no_route
from motet.api.operations import Operation
from motet.api.services import Services
from motet.core.errors import NotFound

OPERATIONS: tuple[Operation, ...] = ()

KINDS = {
    "moderations": "moderation",
    "audio": "audio",
    "images": "images",
    "videos": "videos",
    "realtime": "realtime sessions",
    "fine_tuning": "fine-tuning",
    "assistants": "assistants",
    "threads": "threads",
    "vector_stores": "vector stores",
    "uploads": "uploads in parts; POST /v1/files takes whole files",
    "evals": "evals",
    "containers": "containers",
    "conversations": "conversations; responses continue one another by previous_response_id",
}
METHODS = ["GET", "POST", "DELETE"]

PLACES = {
    ("/v1/chat/completions", "GET"): "stored chat completions; send POST to have a conversation answered",
    ("/v1/chat/completions/<path:rest>", "GET"): "stored chat completions; responses are stored",
    ("/v1/chat/completions/<path:rest>", "POST"): "stored chat completions; responses are stored",
    ("/v1/chat/completions/<path:rest>", "DELETE"): "stored chat completions; responses are stored",
    ("/v1/responses/compact", "POST"): "compaction; truncation shortens what is too long",
}
"""Routes below those that are there."""


def routes(services: Services) -> Blueprint:
    """The routes; they need nothing of `services`."""
    blueprint = Blueprint("elsewhere", __name__)

    def refuse(path: str, methods: list[str], what: str) -> None:
        async def refusal(rest: str = "") -> Response:
            if rest and (path, methods[0]) in PLACES and near_miss() is not None:
                raise NotFound(no_route(), code="not_found")
            raise NotFound(f"this server does not offer {what}", code="not_offered")

        blueprint.add_url_rule(path, f"{path} {methods}".replace(".", "_"), refusal, methods=methods)

    for kind, what in KINDS.items():
        for path in (f"/v1/{kind}", f"/v1/{kind}/<path:rest>"):
            refuse(path, METHODS, what)
    for (path, method), what in PLACES.items():
        refuse(path, [method], what)
    return blueprint
