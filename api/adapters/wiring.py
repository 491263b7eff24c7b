"""Which registry a process works with: its own, or, where there are several API processes, the one they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from motet.api.adapters.adapters import Adapters, Engine
from motet.api.adapters.client import RegistryClient
from motet.api.adapters.inventory import log_inventory
from motet.api.adapters.names import NameRules
from motet.api.adapters.outcomes import LoadLimits
from motet.api.adapters.registry import AdapterRegistry
from motet.api.adapters.size_limit import largest_adapter
from motet.core.deployment import Deployment
from motet.core.paths import cache_directory
from motet.core.plugin_registry import PluginRegistry
from motet.engine.client.loader_client import LoaderClient


@asynccontextmanager
async def own_registry(deployment: Deployment, plugins: PluginRegistry) -> AsyncIterator[AdapterRegistry]:
    """A registry in this process, connected to the loader. Raises StartupError for a setting that is wrong."""
    loader = LoaderClient(deployment.loader_address)
    settings = deployment.settings
    limits = LoadLimits(
        authorisation_seconds=settings.authorisation_seconds,
        stale_seconds=settings.stale_authorisation_seconds,
        largest_adapter=largest_adapter(Path(deployment.model_directory), settings.max_adapter_rank),
        cache_bytes=settings.size("cache_size"),
    )
    registry = AdapterRegistry(plugins.adapter_sources.items, loader, name_rules(deployment), limits)
    await loader.start()
    inventory = asyncio.create_task(log_inventory(plugins.adapter_sources.items, loader))
    try:
        yield registry
    finally:
        inventory.cancel()
        await asyncio.gather(inventory, return_exceptions=True)
        await registry.close()
        await loader.close()


@asynccontextmanager
async def worker_adapters(deployment: Deployment, plugins: PluginRegistry, engine: Engine) -> AsyncIterator[Adapters]:
    """The adapters of an API process. Raises StartupError for a setting that is wrong."""
    names = name_rules(deployment)
    if deployment.workers == 1:
        async with own_registry(deployment, plugins) as registry:
            yield Adapters(registry, engine, names)
        return
    client = RegistryClient(deployment.registry_address)
    await client.start()
    try:
        yield Adapters(client, engine, names)
    finally:
        await client.close()


def name_rules(deployment: Deployment) -> NameRules:
    """What names mean on the server that `deployment` describes."""
    settings = deployment.settings
    aliases = (*settings.model_alias, *deployment.model_aliases)
    return NameRules(deployment.model_name, settings.default_source, cache_directory(), aliases)
