"""The Quart application: routes, error shapes, and the headers that every answer has."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from quart import Blueprint, Quart, Response, g, request

from motet.api import batches, chat, completions, docs_page, embeddings, files, health, models, responses
from motet.api.caller import Caller, hub_bearer
from motet.api.errors import install_error_handlers
from motet.api.request_limits import limited_requests
from motet.api.services import Services

__all__ = ["OPERATIONS", "SURFACES", "Services", "create_app"]

DEFAULT_MAX_BODY = 4 << 20
SURFACES = (chat, completions, embeddings, responses, files, batches, models, health)
"""The modules with routes: each has `routes(services)`, a blueprint, and OPERATIONS, which describes them."""

OPERATIONS = tuple(operation for surface in (*SURFACES, docs_page) for operation in surface.OPERATIONS)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def create_app(services: Services) -> Quart:
    """The application for one API process."""
    # Nothing is kept there, but the framework's own search for it fails in a namespace package.
    app = Quart("motet.api", static_folder=None, instance_path=str(Path(__file__).parent))
    # An adapter's id may hold "//" (a URL): without this it would be redirected.
    app.url_map.merge_slashes = False
    max_body = services.settings.size("max_body") or DEFAULT_MAX_BODY
    app.config["MAX_CONTENT_LENGTH"] = max_body
    app.request_class = limited_requests(services.settings.size("max_file") or 0)
    blueprints: list[Blueprint] = [surface.routes(services) for surface in SURFACES]
    for blueprint in (*blueprints, docs_page.routes(OPERATIONS)):
        app.register_blueprint(blueprint)
    install_error_handlers(app, max_body)

    @app.before_request
    async def name_request() -> None:
        sent = request.headers.get("x-request-id", "")
        g.request_id = sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
        g.caller = Caller(
            admin=True,
            request_id=g.request_id,
            adapter_token=request.headers.get("x-adapter-token"),
            hub_token=hub_bearer(request.headers),
        )

    @app.after_request
    async def add_headers(response: Response) -> Response:
        response.headers["x-request-id"] = g.request_id
        if ignored := g.get("ignored"):
            response.headers["x-motet-ignored"] = ignored
        return response

    app.asgi_app = services.drain.counted(app.asgi_app)  # type: ignore[assignment, method-assign]
    return app
