"""OpenAI's routes that this server has not: a 404 that says so, rather than one that leaves one guessing."""

from __future__ import annotations

from quart import Blueprint, Response

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


def routes(services: Services) -> Blueprint:
    """The routes; they need nothing of `services`."""
    blueprint = Blueprint("elsewhere", __name__)

    async def refuse(rest: str = "", kind: str = "") -> Response:
        raise NotFound(f"this server does not offer {KINDS[kind]}", code="not_offered")

    for kind in KINDS:
        for path in (f"/v1/{kind}", f"/v1/{kind}/<path:rest>"):
            blueprint.add_url_rule(
                path, endpoint=f"{kind}{len(path)}", view_func=refuse, methods=METHODS, defaults={"kind": kind}
            )
    return blueprint
