"""GET /metrics: the metrics of the API processes and of the engine, in Prometheus' text format."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from quart import Blueprint, Quart, Response, g, request

from motet.api.metrics.engine_metrics import EngineCollector
from motet.api.schema.operations import Operation
from motet.api.services import Services
from motet.core.errors import Unavailable
from motet.core.messages import AdapterUse, EngineStats

ENGINE_SECONDS = 1.0
UNROUTED = UNKNOWN = "other"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

OPERATIONS = (
    Operation(
        "get", "/metrics", "Counters for Prometheus", "server", None, media_type="text/plain", description="Text."
    ),
)

REQUESTS = Counter("motet_requests", "Requests that were answered", ("method", "route", "status"))
SECONDS = Histogram(
    "motet_request_seconds",
    "From a request's head to its answer's (a stream's first event)",
    ("route",),
    buckets=(0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
RUNNING = Gauge("motet_requests_running", "Requests that run", multiprocess_mode="livesum")


def install_metrics(app: Quart) -> None:
    """Count every request of `app`.

    Routes are named by their patterns, and unknown methods are one, so that clients cannot create new series.
    """

    @app.before_request
    async def begin() -> None:
        g.began = time.perf_counter()
        RUNNING.inc()

    @app.after_request
    async def count(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule is not None else UNROUTED
        method = request.method if request.method in METHODS else UNKNOWN
        REQUESTS.labels(method, route, str(response.status_code)).inc()
        if (began := g.get("began")) is not None:
            SECONDS.labels(route).observe(time.perf_counter() - began)
        return response

    @app.teardown_request
    async def end(_: BaseException | None) -> None:
        if g.get("began") is not None:
            RUNNING.dec()


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        text = await asyncio.to_thread(_api_metrics) + await _engine_metrics(services)
        return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return blueprint


def _api_metrics() -> bytes:
    """The metrics of the API processes, added up if there are several."""
    registry = CollectorRegistry()
    try:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError:  # there is only one process
        return generate_latest()
    return generate_latest(registry)


async def _engine_metrics(services: Services) -> bytes:
    """The engine's metrics; only `motet_engine_up` 0 while it does not respond."""
    stats: EngineStats | None = None
    use: AdapterUse | None = None
    try:
        async with asyncio.timeout(ENGINE_SECONDS):
            use, stats = await services.engine.adapter_use(), await services.engine.stats()
    except (Unavailable, TimeoutError):
        pass
    registry = CollectorRegistry()
    registry.register(EngineCollector(stats, use))
    return generate_latest(registry)
