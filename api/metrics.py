"""GET /metrics: counters and gauges in Prometheus' text format, of this process and of the engine behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from quart import Blueprint, Quart, Response, g, request

from motet.api.operations import Operation
from motet.api.services import Services
from motet.core.errors import Unavailable
from motet.core.messages import EngineStats

ENGINE_SECONDS = 1.0
UNROUTED = UNKNOWN = "other"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

OPERATIONS = (
    Operation("get", "/metrics", "Counters for Prometheus", "server", None, media="text/plain", says="Text."),
)

REQUESTS = Counter("motet_requests", "Requests that were answered", ("method", "route", "status"))
SECONDS = Histogram(
    "motet_request_seconds",
    "From a request's head to its answer's (a stream's first event)",
    ("route",),
    buckets=(0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
RUNNING = Gauge("motet_requests_running", "Requests that run", multiprocess_mode="livesum")

ENGINE_GAUGES = {
    "motet_sequences_running": ("Sequences in the batch", "running"),
    "motet_sequences_waiting": ("Sequences that wait for their turn", "waiting"),
    "motet_cache_blocks_free": ("Blocks of the key-value cache that nobody holds", "blocks_free"),
    "motet_cache_blocks": ("Blocks of the key-value cache", "blocks_total"),
    "motet_adapters_resident": ("Adapters on the device", "adapters_resident"),
    "motet_adapters_pinned": ("Adapters that running sequences use", "adapters_pinned"),
}
ENGINE_COUNTERS = {
    "motet_steps": ("Steps since the engine started", "steps"),
    "motet_preemptions": ("Sequences that had to give their blocks back", "preemptions"),
    "motet_prompt_tokens": ("Tokens of prompts that were computed", "prompt_tokens"),
    "motet_generated_tokens": ("Tokens that were sampled", "generated_tokens"),
}
"""The engine's: name to help text and field of EngineStats. Prometheus sees counters with `_total` at the end."""


def install_metrics(app: Quart) -> None:
    """Count every request of `app`.

    Routes are named by their patterns, and methods that nobody knows are one, so that nobody can make up series.
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
        text = await asyncio.to_thread(_counted) + await _engine(services)
        return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return blueprint


def _counted() -> bytes:
    """What the API processes have counted, all together where there are several."""
    registry = CollectorRegistry()
    try:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError:  # there is one process
        return generate_latest()
    return generate_latest(registry)


async def _engine(services: Services) -> bytes:
    """What the engine counts, as it is now; 0 for `motet_engine_up` alone while it does not answer."""
    stats: EngineStats | None = None
    try:
        async with asyncio.timeout(ENGINE_SECONDS):
            stats = await services.engine.stats()
    except (Unavailable, TimeoutError):
        pass
    registry = CollectorRegistry()
    registry.register(_EngineCollector(stats))
    return generate_latest(registry)


class _EngineCollector(Collector):
    """The engine's numbers, kept nowhere: a Gauge of each API process would have a series of its own."""

    def __init__(self, stats: EngineStats | None) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("motet_engine_up", "Whether the engine answers", float(self._stats is not None))
        if self._stats is not None:
            for name, (text, field) in ENGINE_GAUGES.items():
                yield GaugeMetricFamily(name, text, getattr(self._stats, field))
            for name, (text, field) in ENGINE_COUNTERS.items():
                yield CounterMetricFamily(name, text, getattr(self._stats, field))
