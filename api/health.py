"""GET /health: whether requests can be answered now."""

from __future__ import annotations

from quart import Blueprint, Response

from motet.api.errors import RETRY_AFTER_SECONDS
from motet.api.responses import ENCODER, Health
from motet.api.services import Services


def health_routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    routes = Blueprint("health", __name__)

    @routes.get("/health")
    async def health() -> Response:
        state = health_of(services)
        status = 200 if state.status == "ok" else 503
        response = Response(ENCODER.encode(state), status, content_type="application/json")
        response.headers["cache-control"] = "no-store"
        if status == 503:
            response.headers["retry-after"] = RETRY_AFTER_SECONDS[status]
        return response

    return routes


def health_of(services: Services) -> Health:
    """The state of this process and of the engine as it knows it."""
    if services.drain.draining:
        return Health(status="draining", model=services.model_name, reason="the server is shutting down")
    if not services.engine.ready:
        reason = services.engine.reason or "the engine is starting"
        return Health(status="unavailable", model=services.model_name, reason=reason)
    return Health(status="ok", model=services.model_name)
