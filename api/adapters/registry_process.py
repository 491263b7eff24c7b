"""The registry process, shared by several API processes: `python -m motet.api.adapters.registry_process DEPLOYMENT`."""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec

from motet.api.adapters.local_registry import open_local_registry
from motet.api.adapters.remote_registry import RegistryServer
from motet.core.child_processes import follow_parent, run_child
from motet.core.deployment import Deployment
from motet.core.heartbeat import SERVING, Heartbeat
from motet.core.logs import configure_logging
from motet.core.plugin_registry import PluginRegistry


async def run(deployment: Deployment, heartbeat: Heartbeat) -> None:
    """Serve requests until SIGTERM."""
    plugins = PluginRegistry.load()
    plugins.configure(deployment.settings)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with open_local_registry(deployment, plugins) as registry:
        server = RegistryServer(registry, deployment.registry_address)
        heartbeat.enter(SERVING)
        tasks = [asyncio.create_task(work()) for work in (server.run, heartbeat.keep_beating)]
        await stopped.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()


def main() -> None:
    """Run the registry for the deployment in argv[1] (JSON); exit code 2 if it cannot start."""
    deployment = msgspec.json.decode(sys.argv[1], type=Deployment)
    follow_parent()
    configure_logging(process="registry")
    run_child("adapter registry", lambda heartbeat: asyncio.run(run(deployment, heartbeat)))


if __name__ == "__main__":
    main()
