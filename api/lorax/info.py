"""GET /info, and the probes /, /ping and /startup."""

from __future__ import annotations

import asyncio
import time
import uuid
from importlib.metadata import version

from quart import Blueprint, Response

from motet.api.http.json_response import json_response
from motet.api.lorax.errors import MEANINGS, lorax_blueprint
from motet.api.lorax.objects import LoraxError, ServerInfo
from motet.api.routes.health import health_response
from motet.api.schema.openai_objects import Health
from motet.api.schema.operations import Operation
from motet.api.schema.request_fields import MAX_CHOICES, MAX_STOP_STRINGS
from motet.api.services import Services
from motet.core.errors import Unavailable
from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams

STARTUP_SECONDS = 60.0
PROBE_SECONDS = 5.0
PRIORITY = 1000

OPERATIONS = (
    Operation(
        "get",
        "/info",
        "The model and its limits",
        "lorax",
        ServerInfo,
        statuses=(503,),
        error_response=LoraxError,
        status_descriptions=MEANINGS,
    ),
    *(
        Operation(
            "get",
            path,
            "Can requests be answered now?",
            "lorax",
            Health,
            description="Yes.",
            unavailable=Health,
            error_response=LoraxError,
            status_descriptions=MEANINGS,
        )
        for path in ("/", "/ping")
    ),
    Operation(
        "get",
        "/startup",
        "Run a request and report whether it succeeded",
        "lorax",
        Health,
        description="It succeeded.",
        statuses=(503,),
        error_response=LoraxError,
        status_descriptions=MEANINGS,
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = lorax_blueprint("info", services)

    @blueprint.get("/info")
    async def info() -> Response:
        return json_response(_info(services))

    @blueprint.get("/")
    @blueprint.get("/ping")
    async def ping() -> Response:
        return await health_response(services)

    probe = _Probe()

    @blueprint.get("/startup")
    async def startup() -> Response:
        await probe.run(services)
        return await health_response(services)

    return blueprint


def _info(services: Services) -> ServerInfo:
    """The answer to GET /info. Raises Unavailable while there is no model."""
    model, settings = services.model(), services.settings
    return ServerInfo(
        model_id=model.name,
        model_sha=None,
        model_dtype=model.dtype,
        model_device_type=model.device,
        model_pipeline_tag="text-generation",
        max_concurrent_requests=settings.max_sequences,
        max_best_of=MAX_CHOICES,
        max_stop_sequences=MAX_STOP_STRINGS,
        max_input_length=model.max_context - 1,
        max_total_tokens=model.max_context,
        waiting_served_ratio=0.0,
        max_batch_total_tokens=model.max_batch_tokens,
        max_waiting_tokens=0,
        validation_workers=settings.api_workers,
        eager_prefill=True,
        version=version("motet"),
        sha=None,
        docker_label=None,
        request_logger_url=None,
    )


class _Probe:
    """Runs a request to prove that the engine works.

    It needs no API key, so all callers share one result, and it has the lowest priority.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._until = 0.0

    async def run(self, services: Services) -> None:
        """Run it, unless it has run in the last PROBE_SECONDS. Raises Unavailable if the engine does not work."""
        async with self._turn:
            services.model()
            if time.monotonic() >= self._until:
                await _generate_token(services)
                self._until = time.monotonic() + PROBE_SECONDS


async def _generate_token(services: Services) -> None:
    """Generate one token. Raises Unavailable if the engine does not."""
    prompt = tuple(services.tokenizer.encode("Who?", add_special_tokens=True))
    sequence = AddRequest(
        f"startup-{uuid.uuid4().hex}", prompt, SamplingParams(max_tokens=1, temperature=0.0), priority=PRIORITY
    )
    try:
        async with asyncio.timeout(STARTUP_SECONDS):
            async for _ in services.engine.generate(sequence):
                pass
    except TimeoutError:
        raise Unavailable(f"the engine generated no token in {STARTUP_SECONDS:g} s") from None
