"""A registry with the hub plugin, whose clock the test sets."""

from __future__ import annotations

from pathlib import Path

from support.scripted_registry import FakeLoader

from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import NameRules
from motet.core.adapter_source import AdapterRef
from motet.core.settings import Settings
from motet.plugins.sources.hub import HubAdapters


class HubRegistry:
    """A registry with the hub plugin, and its clock."""

    def __init__(self, cache: Path) -> None:
        source = self.source = HubAdapters()
        source.configure(Settings())
        self.now = 0.0
        names = NameRules("base", "hub", cache)
        limits = LoadLimits(refresh_wait_seconds=0.1)
        self.registry = LocalRegistry({"hub": source}, FakeLoader(), names, limits, lambda: self.now)

    async def serve(self, ref: AdapterRef, token: str | None = None) -> str:
        return (await self.registry.serve(ref, token)).prepared.id

    async def __aenter__(self) -> HubRegistry:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.registry.close()
