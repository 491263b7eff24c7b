"""The engine as a Python library, for offline batches without HTTP.

async with Engine.open(model_directory, Settings(shards=2)) as engine:
    adapter = await engine.adapter(Path("my-lora"))
    tokens = await engine.complete(prompt_ids, SamplingParams(max_tokens=32), adapter)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from motet.core.messages import AdapterPart, AddRequest, PreparedAdapter, TokenEvent
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.client.engine_client import EngineClient
from motet.engine.client.loader_client import LoaderClient
from motet.engine.distributed.hosts import host_group
from motet.engine.engine_config import EngineConfig
from motet.engine.processes.engine_processes import EngineProcesses

START_SECONDS = 300.0
TICK_SECONDS = 0.05


@dataclass
class Engine:
    """A running engine; `open` starts it."""

    processes: EngineProcesses
    client: EngineClient
    loader: LoaderClient

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, directory: Path, settings: Settings) -> AsyncIterator[Engine]:
        """Start an engine for the model in `directory`, and end it when the block ends.

        Raises StartupError or Unavailable if the engine does not start.
        """
        hosts = host_group(settings, os.environ)
        processes = EngineProcesses(EngineConfig.from_settings(settings, directory), directory.name, hosts)
        engine = cls(
            processes,
            EngineClient(processes.engine_address, processes.state_address),
            LoaderClient(processes.loader_address),
        )
        processes.start()
        watcher = asyncio.create_task(engine._watch())
        try:
            await engine.client.start()
            await engine.loader.start()
            ready = asyncio.create_task(engine.client.wait_ready(START_SECONDS))
            await asyncio.wait({watcher, ready}, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done():
                ready.cancel()
                await watcher
            await ready
            yield engine
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            await engine.client.close()
            await engine.loader.close()
            await asyncio.to_thread(processes.stop)

    async def adapter(self, directory: Path) -> PreparedAdapter:
        """Prepare and register the PEFT adapter in `directory`. Raises AdapterRefused with the reason."""
        return await self.merged([AdapterPart(str(directory))])

    async def merged(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """Prepare and register the weighted sum of the PEFT adapters in `parts`. Raises AdapterRefused."""
        prepared = await self.loader.prepare(parts)
        await self.client.register(prepared)
        return prepared

    async def complete(
        self, prompt: Sequence[int], params: SamplingParams, adapter: PreparedAdapter | None = None
    ) -> list[TokenEvent]:
        """Generate the tokens after `prompt` (token ids). Raises the same errors as EngineClient.generate."""
        fingerprint = adapter.fingerprint if adapter else None
        request = AddRequest(uuid.uuid4().hex, tuple(prompt), params, fingerprint)
        return [event async for events in self.client.generate(request) for event in events]

    async def embed(
        self, prompt: Sequence[int], pooling: Literal["last", "mean"] = "last", adapter: PreparedAdapter | None = None
    ) -> tuple[float, ...]:
        """The last hidden state of the last token, or the mean of all tokens. Raises the same errors as `complete`."""
        fingerprint = adapter.fingerprint if adapter else None
        params = SamplingParams(max_tokens=0)
        return await self.client.embed(
            AddRequest(uuid.uuid4().hex, tuple(prompt), params, fingerprint, pooling=pooling)
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.to_thread(self.processes.tick)
            await asyncio.sleep(TICK_SECONDS)
