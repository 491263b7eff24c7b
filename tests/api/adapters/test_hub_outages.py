"""The registry with the hub plugin while the hub fails: loaded adapters stay, and the hub gets few requests."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_hub import Hub
from support.fake_hub_registry import HubRegistry
from support.scripted_registry import failure, until

from motet.core.adapter_source import AdapterRef
from motet.core.errors import Unavailable

ADAPTER = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights"}
GOOD = AdapterRef("hub", "org/good")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("MOTET_HUB_TOKEN", raising=False)
        running.add("org/good", ADAPTER)
        yield running


def heads(hub: Hub) -> int:
    return hub.count("HEAD", "adapter_config.json")


@pytest.mark.parametrize("trouble", [500, 503, 429, "hang", "away"])
def test_a_hub_in_trouble_leaves_loaded_adapters_alone(hub: Hub, tmp_path: Path, trouble: int | str) -> None:
    async def body() -> None:
        async with HubRegistry(tmp_path) as server:
            for _ in range(20):
                await server.serve(GOOD)
            before = heads(hub)
            assert before == 1
            server.now = 61.0
            if trouble == "away":
                server.source._hub.endpoint = "http://127.0.0.1:1"
            elif trouble == "hang":
                hub.delay = 1.0
            else:
                hub.failing = int(trouble)
            for _ in range(20):
                assert await server.serve(GOOD, "hf_anybody")
            if trouble != "away":
                async with asyncio.timeout(20):
                    await until(lambda: heads(hub) > before)  # the hub is asked beside the requests
            assert heads(hub) - before == (0 if trouble == "away" else 1)
            error = await failure(server.serve(AdapterRef("hub", "org/cold")))
            assert isinstance(error, Unavailable) or trouble in ("hang", "away")

    asyncio.run(body())


def test_offline_serves_what_is_on_disk_and_knows_nothing_else(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = AdapterRef("hub", "org/good", hub.repositories["org/good"].commit)

    async def online() -> None:
        async with HubRegistry(tmp_path) as server:
            await server.serve(GOOD)

    async def offline() -> None:
        async with HubRegistry(tmp_path) as server:
            assert await server.serve(GOOD) == '{"r": 8}'
            assert await server.serve(pinned, "hf_anybody") == '{"r": 8}'
            error = await failure(server.serve(AdapterRef("hub", "org/unknown")))
            assert (error.status, error.code) == (404, "source_offline")

    asyncio.run(online())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    asyncio.run(offline())
    assert hub.requests == []
