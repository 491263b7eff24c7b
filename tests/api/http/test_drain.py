"""Shutdown of an API process: not ready first, then no new requests, while running ones finish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
from support.api_caller import CHAT, MESSAGES, Caller, drive
from support.scripted_server import scripted_server

from motet.api.batches.runner import BatchRunner
from motet.api.worker import _drain
from motet.core.settings import Settings

BODY = {"model": "", "messages": MESSAGES}


def test_ready_says_whether_the_engine_serves_and_live_that_the_process_does(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert (await caller.client.get("/ready")).status_code == 200
        caller.api.engine.ready, caller.api.engine.reason = False, "the engine is starting"
        ready = await caller.client.get("/ready")
        body = await ready.get_json()
        assert (ready.status_code, body["status"], body["reason"]) == (503, "unavailable", "the engine is starting")
        live = await caller.client.get("/live")
        assert (live.status_code, await live.get_json()) == (200, {"status": "ok"})

    drive(tmp_path, scenario)


def test_a_drain_delay_answers_new_requests_while_the_server_is_not_ready(tmp_path: Path) -> None:
    """What a load balancer sends until it has seen that the server is not ready is answered."""

    async def scenario() -> None:
        settings = Settings(drain_delay=1.5)
        async with scripted_server(tmp_path, settings) as server, httpx2.AsyncClient(base_url=server.url) as client:
            services = server.api.services
            stopped, drained = asyncio.Event(), asyncio.Event()
            drain = asyncio.create_task(_drain(services, BatchRunner(services), stopped, drained))
            assert (await client.get("/ready")).status_code == 200
            stopped.set()
            await asyncio.sleep(0)
            ready = await client.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert (await client.post(CHAT, json=BODY)).status_code == 200
            server.api.engine.step_seconds = 0.3
            running = asyncio.create_task(client.post(CHAT, json=BODY))
            async with asyncio.timeout(30):
                while not services.drain.draining:
                    await asyncio.sleep(0.05)
            refused = await client.post(CHAT, json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert (await client.get("/live")).status_code == 200
            assert (await running).status_code == 200
            await asyncio.wait_for(drained.wait(), 10)
            await drain

    asyncio.run(scenario())
