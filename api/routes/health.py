"""GET /health and /ready: whether requests can be answered now. GET /live: whether this process responds."""

from __future__ import annotations

import asyncio

from quart import Blueprint, Response

from motet.api.http.errors import RETRY_AFTER_SECONDS
from motet.api.http.json_response import json_response
from motet.api.http.probe_paths import HEALTH_PATHS, LIVE_PATHS, READY_PATHS
from motet.api.schema.openai_objects import Health, Live
from motet.api.schema.operations import Operation
from motet.api.services import Services
from motet.core.errors import Unavailable

ANSWER_SECONDS = 5.0
"""The engine responds between two steps; no normal step takes longer than this."""

OPERATIONS = (
    *(
        Operation(
            "get", path, "Can requests be answered now?", "server", Health, description="Yes.", unavailable=Health
        )
        for path in HEALTH_PATHS
    ),
    *(
        Operation(
            "get", path, "Should requests be sent here?", "server", Health, description="Yes.", unavailable=Health
        )
        for path in READY_PATHS
    ),
    *(
        Operation("get", path, "Does the process answer?", "server", Live, description="It does.")
        for path in LIVE_PATHS
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("health", __name__)

    async def health() -> Response:
        return await health_response(services)

    async def live() -> Response:
        response = json_response(Live())
        response.headers["cache-control"] = "no-store"
        return response

    for path in (*HEALTH_PATHS, *READY_PATHS):
        blueprint.add_url_rule(path, path, health)
    for path in LIVE_PATHS:
        blueprint.add_url_rule(path, path, live)
    return blueprint


async def health_response(services: Services) -> Response:
    """The state as a response: 200, or 503 with `retry-after`."""
    state = await health_of(services)
    status = 200 if state.status == "ok" else 503
    response = json_response(state, status)
    response.headers["cache-control"] = "no-store"
    if status == 503:
        response.headers["retry-after"] = RETRY_AFTER_SECONDS[status]
    return response


async def health_of(services: Services) -> Health:
    """The state of this process and of the engine, which is asked now: one that hangs is not healthy."""
    if services.drain.not_ready:
        return Health(status="draining", model=services.model_name, reason="the server is shutting down")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            stats = await services.engine.stats()
    except Unavailable as error:
        return Health(status="unavailable", model=services.model_name, reason=error.message)
    except TimeoutError:
        return Health(status="unavailable", model=services.model_name, reason="the engine does not respond")
    return Health(status="ok", model=services.model_name, engine=stats)
