"""Downloads from a hub that drips, lies about sizes, or sends bombs: bounded, ended, and a 503 that says why."""

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_hub import Hub

from motet.core.adapter_source import AdapterRef
from motet.core.errors import AdapterRefused, MotetError, Unavailable
from motet.core.settings import Settings
from motet.plugins.sources import hub as hub_plugin
from motet.plugins.sources import hub_transfers
from motet.plugins.sources.hub import HubAdapters

ADAPTER = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights" * 100}
PIRATE = AdapterRef("hub", "org/pirate")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("MOTET_HUB_TOKEN", raising=False)
        running.add("org/pirate", ADAPTER)
        yield running


def fetch(into: Path) -> list[str]:
    """The names of the files that come."""
    source = HubAdapters()
    source.configure(Settings())

    async def both() -> None:
        await source.fetch(await source.resolve(PIRATE, None), None, into)

    asyncio.run(both())
    return sorted(path.name for path in into.iterdir())


def failure(into: Path) -> MotetError:
    with pytest.raises(MotetError) as caught:
        fetch(into)
    return caught.value


def page(**sizes: int) -> bytes:
    files = {"adapter_config.json": 8, "adapter_model.safetensors": 700, **sizes}
    return json.dumps({"siblings": [{"rfilename": name, "size": size} for name, size in files.items()]}).encode()


def test_compressed_answers_are_read(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/pirate"].files = {name: gzip.compress(content) for name, content in ADAPTER.items()}
    hub.page, hub.headers = gzip.compress(page()), {"Content-Encoding": "gzip"}
    assert fetch(tmp_path) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {name: (tmp_path / name).read_bytes() for name in ADAPTER} == ADAPTER


def test_a_bomb_in_the_metadata_is_not_unpacked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_plugin, "MAX_METADATA_BYTES", 1 << 20)
    hub.page, hub.headers = gzip.compress(b" " * (64 << 20)), {"Content-Encoding": "gzip"}
    error = failure(tmp_path)
    assert isinstance(error, Unavailable)
    assert "more than 1048576 bytes" in error.message


def test_a_bomb_in_a_file_stops_at_its_size(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/pirate"].files["adapter_config.json"] = gzip.compress(b" " * (64 << 20))
    hub.page, hub.headers = gzip.compress(page()), {"Content-Encoding": "gzip"}
    assert isinstance(failure(tmp_path), Unavailable)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 4 << 20


def test_a_bomb_in_an_error_is_not_unpacked(hub: Hub, tmp_path: Path) -> None:
    source = HubAdapters()
    source.configure(Settings())

    async def body() -> None:
        resolved = await source.resolve(PIRATE, None)
        hub.failing, hub.headers = 500, {"Content-Encoding": "gzip"}
        with pytest.raises(Unavailable, match="500"):
            await source.fetch(resolved, None, tmp_path)

    asyncio.run(body())


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"[]",
        b"null",
        b'{"siblings": 7}',
        b'{"siblings": [{"size": 3}]}',
        b'{"siblings": [{"rfilename": 5}]}',
        b"\xff",
    ],
)
def test_malformed_metadata_is_the_hubs_fault(hub: Hub, tmp_path: Path, metadata: bytes) -> None:
    hub.page = metadata
    error = failure(tmp_path)
    assert (error.status, error.code) == (503, "source_unavailable")


@pytest.mark.parametrize("size", [699, 701])
def test_a_file_of_another_size_than_said_is_refused(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.page = page(**{"adapter_model.safetensors": size})
    error = failure(tmp_path)
    assert isinstance(error, Unavailable)
    assert "damaged or larger than announced" in error.message


def test_a_download_that_drips_is_ended(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_transfers, "RATE_SECONDS", 0.2)
    hub.drip = 0.02
    error = failure(tmp_path)
    assert isinstance(error, Unavailable)
    assert "sends too slowly" in error.message


def test_a_download_that_drips_ends_with_its_caller(hub: Hub, tmp_path: Path) -> None:
    hub.drip = 0.05
    source = HubAdapters()
    source.configure(Settings())
    (into := tmp_path / "into").mkdir()

    async def body() -> None:
        resolved = await source.resolve(PIRATE, None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await source.fetch(resolved, None, into)
        began = time.monotonic()
        while source._fetchers._users:
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < 10  # the whole file would take 35 s

    asyncio.run(body())
    assert not into.exists()


def test_weights_that_the_server_could_not_load_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    source = HubAdapters()
    source.configure(Settings())
    source.max_adapter_bytes = 699

    async def body() -> None:
        with pytest.raises(AdapterRefused, match="700 bytes; the maximum is 699"):
            await source.fetch(await source.resolve(PIRATE, None), None, tmp_path)

    asyncio.run(body())
    assert list(tmp_path.iterdir()) == []


def test_only_files_that_are_read_are_fetched(hub: Hub, tmp_path: Path) -> None:
    read = ["added_tokens.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"]
    read += ["tokenizer.json", "tokenizer_config.json"]
    unread = [
        "tokenizer.model",
        "tokenizer.json.bak",
        "README.md",
        "optimizer.pt",
        "adapter_model-00001-of-2.safetensors",
    ]
    hub.add("org/pirate", {**ADAPTER, **dict.fromkeys((*read, *unread), b"{}")})
    assert fetch(tmp_path) == sorted([*ADAPTER, *read])


def test_shards_are_named(hub: Hub, tmp_path: Path) -> None:
    shards = {f"adapter_model-0000{n}-of-00002.safetensors": b"x" for n in (1, 2)}
    hub.add("org/pirate", {"adapter_config.json": b"{}", **shards})
    assert "split over 2 files" in failure(tmp_path).message
