"""Runs one API process (`python -m motet.api.worker DEPLOYMENT`): Quart on Hypercorn, on the supervisor's socket."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
from hypercorn.asyncio import serve
from loguru import logger

from motet.api.adapters.remote_registry import open_registry
from motet.api.app import create_app
from motet.api.batches.runner import BatchRunner
from motet.api.http import hypercorn_patches
from motet.api.http.listener import FINAL_ERROR_SECONDS, ListenerConfig
from motet.api.routes.files import file_store
from motet.api.services import Services
from motet.api.storage.database import Database
from motet.core.child_processes import follow_parent, run_child
from motet.core.deployment import Deployment
from motet.core.heartbeat import SERVING, Heartbeat
from motet.core.logs import configure_logging
from motet.core.paths import data_directory
from motet.core.plugin_registry import PluginRegistry
from motet.engine.client.engine_client import EngineClient
from motet.engine.client.template_renderer import TemplateRenderer
from motet.engine.client.tokenizer import ModelTokenizer


async def run(deployment: Deployment, heartbeat: Heartbeat) -> None:
    """Serve until SIGTERM, then drain."""
    settings = deployment.settings
    plugins = PluginRegistry.load()
    plugins.configure(settings)
    engine = EngineClient(deployment.engine_address, deployment.state_address)
    async with open_registry(deployment, plugins) as adapters:
        services = Services(
            settings=settings,
            tokenizer=ModelTokenizer(Path(deployment.model_directory)),
            engine=engine,
            adapters=adapters,
            renderer=TemplateRenderer(),
            plugins=plugins,
            model_name=deployment.model_name,
            database=Database(data_directory(settings.data_dir), settings.size("max_files")),
        )
        await engine.start()
        await _answer(services, deployment, heartbeat)
        await services.renderer.close()
        await services.grammars.close()
        await engine.close()
        await services.database.close()


async def _answer(services: Services, deployment: Deployment, heartbeat: Heartbeat) -> None:
    """Answer HTTP until SIGTERM, and through the drain."""
    settings = services.settings
    if deployment.announce and not settings.api_keys and not _is_local_only(deployment.socket):
        logger.warning(
            "listening on {} without API keys: anyone who can reach the port can use the server", settings.host
        )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    drained = asyncio.Event()
    batches = BatchRunner(services)
    batches.start()
    drain = asyncio.create_task(_drain(services, batches, stopped, drained))
    announce = asyncio.create_task(_announce(services, deployment))
    tend = asyncio.create_task(file_store(services).sweep_periodically())
    beat = asyncio.create_task(heartbeat.keep_beating())
    hypercorn_patches.apply()
    config = ListenerConfig(deployment.socket, services.settings)
    heartbeat.enter(SERVING)
    await serve(create_app(services), config, shutdown_trigger=drained.wait)
    for task in (drain, announce, tend, beat):
        task.cancel()
    await asyncio.gather(drain, announce, tend, beat, return_exceptions=True)


def _is_local_only(descriptor: int) -> bool:
    """Whether the listening socket `descriptor` accepts only connections from this machine."""
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


async def _drain(services: Services, batches: BatchRunner, stopped: asyncio.Event, drained: asyncio.Event) -> None:
    """After SIGTERM: report not ready, then refuse new requests, then end running ones after `drain_seconds`."""
    await stopped.wait()
    services.drain.mark_not_ready()
    if services.settings.drain_delay:
        await asyncio.sleep(services.settings.drain_delay)
        logger.info("no new requests from now on; running ones may finish for {:g} s", services.settings.drain_seconds)
    services.drain.refuse_new_requests()
    await batches.close()
    if not await services.drain.wait(services.settings.drain_seconds):
        services.drain.cancel_remaining()
        await services.drain.wait(FINAL_ERROR_SECONDS)
    drained.set()


async def _announce(services: Services, deployment: Deployment) -> None:
    """Print that the server is up, with a command to try; only one of several API processes does."""
    if not deployment.announce:
        return
    await services.engine.wait_ready(None)  # the supervisor logs what it waits for
    body = f'{{"model": "{deployment.model_name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    key = "-H 'Authorization: Bearer YOUR_KEY' " if services.settings.api_keys else ""
    print(
        f"\nMotet serves {deployment.model_name} at {deployment.address}   (docs: {deployment.address}/docs)\n"
        f"Try it:  curl {deployment.address}/v1/chat/completions "
        f"-H 'Content-Type: application/json' {key}-d '{body}'\n",
        flush=True,
    )


def main() -> None:
    """Run the worker that argv[1] describes; exit code 2 when it cannot start."""
    deployment = msgspec.json.decode(sys.argv[1], type=Deployment)
    follow_parent()
    configure_logging(process=f"api-{deployment.index}")
    run_child("API worker", lambda heartbeat: asyncio.run(run(deployment, heartbeat)))


if __name__ == "__main__":
    main()
