"""Builds the Quart application: routes, error shapes, and the headers of every response."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quart import Blueprint, Quart
from quart.routing import QuartRule

from motet.api.anthropic import messages
from motet.api.anthropic.errors import install_request_id
from motet.api.batches import routes as batches
from motet.api.error_shapes import response_by_client
from motet.api.http.access_log import with_access_log
from motet.api.http.auth import install_access
from motet.api.http.body_limits import LimitedRequest
from motet.api.http.cors import install_cors
from motet.api.http.errors import DEFAULT_MAX_BODY, install_error_handlers
from motet.api.http.sse_keep_alive import with_keep_alive
from motet.api.lorax import embed, generate, info, tokens
from motet.api.ollama import chat as ollama_chat
from motet.api.ollama import generate as ollama_generate
from motet.api.ollama import show, tags, version
from motet.api.responses import routes as responses
from motet.api.routes import (
    cancel,
    chat,
    completions,
    docs,
    embeddings,
    files,
    health,
    metrics,
    models,
    not_offered,
    server_info,
)
from motet.api.services import Services

__all__ = ["OPERATIONS", "ROUTE_MODULES", "Services", "create_app"]

ROUTE_MODULES = (
    *(chat, completions, embeddings, responses, files, batches, models, cancel),
    *(generate, embed, info, tokens),
    messages,
    *(version, tags, show, ollama_chat, ollama_generate),
    *(metrics, not_offered, health, server_info),
)
"""The modules with routes: each has `routes(services)`, which returns a blueprint, and OPERATIONS, for OpenAPI."""

OPERATIONS = tuple(operation for module in (*ROUTE_MODULES, docs) for operation in module.OPERATIONS)


class MatchedRule(QuartRule):
    """A route that requests are matched with. Its URL is never built, and compiling builders is most of a start."""

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        return _build_no_url


def _build_no_url(*_: Any, **__: Any) -> tuple[str, str]:
    raise NotImplementedError("the server builds no URLs of its routes")


def create_app(services: Services) -> Quart:
    """The application for one API process."""
    # Unused, but the framework's own search for it fails in a namespace package.
    app = Quart("motet.api", static_folder=None, instance_path=str(Path(__file__).parent))
    app.url_rule_class = MatchedRule
    # An adapter's id may contain "//" (a URL); without this it would be redirected.
    app.url_map.merge_slashes = False
    max_body = services.settings.size("max_body") or DEFAULT_MAX_BODY
    app.config["MAX_CONTENT_LENGTH"] = max_body
    app.request_class = LimitedRequest
    blueprints: list[Blueprint] = [module.routes(services) for module in ROUTE_MODULES]
    for blueprint in (*blueprints, docs.routes(OPERATIONS)):
        app.register_blueprint(blueprint)
    install_error_handlers(app, max_body, response_by_client(app))

    install_access(app, services.settings)
    install_request_id(app)
    metrics.install_metrics(app)
    install_cors(app, services.settings)
    logs = services.settings.access_log == "on"
    app.asgi_app = services.drain.count_requests(with_access_log(with_keep_alive(app.asgi_app), logs))  # type: ignore[assignment, method-assign]
    return app
