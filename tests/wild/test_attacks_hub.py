"""A hub that lies, fails or sends bombs: the server returns an error, writes only into its cache, and continues."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_hub import Hub

from motet.core.adapter_source import AdapterRef
from motet.core.errors import AdapterRefused, MotetError, NotFound, Unavailable
from motet.core.settings import Settings
from motet.plugins.sources import hub as hub_plugin
from motet.plugins.sources.hub import HubAdapters

ADAPTER = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights" * 100}
VICTIM, ATTACKER = AdapterRef("hub", "org/victim"), AdapterRef("hub", "org/attacker")
SECONDS = 10.0


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("MOTET_HUB_TOKEN", raising=False)
        monkeypatch.setattr(hub_plugin, "MAX_METADATA_BYTES", 1 << 20)
        for name in (VICTIM, ATTACKER):
            running.add(name.id, ADAPTER)
        yield running


def page(*files: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"siblings": list(files), **fields}).encode()


def file(name: object, size: object = 700) -> dict[str, Any]:
    return {"rfilename": name, "size": size}


CONFIG = file("adapter_config.json", 8)
WEIGHTS = file("adapter_model.safetensors")


def bomb(hub: Hub) -> None:
    hub.page, hub.headers = gzip.compress(b" " * (64 << 20)), {"Content-Encoding": "gzip"}


def answer(content: bytes) -> Callable[[Hub], None]:
    def attack(hub: Hub) -> None:
        hub.page = content

    return attack


def failing(status: int) -> Callable[[Hub], None]:
    def attack(hub: Hub) -> None:
        hub.failing = status

    return attack


ATTACKS: dict[str, Callable[[Hub], None]] = {
    "gzip-bomb": bomb,
    "not-json": answer(b"<html>"),
    "json-list": answer(b"[]"),
    "json-deep": answer(b"[" * 100_000),
    "no-files": answer(b"{}"),
    "files-null": answer(b'{"siblings": null}'),
    "file-without-name": answer(page(CONFIG, {"size": 3})),
    "name-of-another-type": answer(page(CONFIG, file(7))),
    "size-of-another-type": answer(page(CONFIG, file("adapter_model.safetensors", "large"))),
    "size-of-terabytes": answer(page(CONFIG, file("adapter_model.safetensors", 1 << 50))),
    "100000-files": answer(page(CONFIG, *(file(f"x{number}.bin") for number in range(100_000)))),
    "status-500": failing(500),
    "status-429": failing(429),
    "status-418": failing(418),
}


@pytest.mark.parametrize("form", ATTACKS)
def test_withstood_a_hub_that_lies(hub: Hub, tmp_path: Path, form: str) -> None:
    source = HubAdapters()
    source.configure(Settings())

    async def fetch(name: AdapterRef) -> None:
        into = tmp_path / "cache" / name.id
        into.mkdir(parents=True)
        await source.fetch(await source.resolve(name, None), None, into)

    ATTACKS[form](hub)
    began = time.monotonic()
    with pytest.raises(MotetError) as caught:
        asyncio.run(fetch(ATTACKER))
    assert isinstance(caught.value, AdapterRefused | NotFound | Unavailable), caught.value
    assert time.monotonic() - began < SECONDS
    hub.page, hub.failing, hub.headers = None, None, {}
    asyncio.run(fetch(VICTIM))


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/tmp/outside.safetensors", "a/../../outside"])
def test_withstood_file_names_that_lead_out(hub: Hub, tmp_path: Path, name: str) -> None:
    source = HubAdapters()
    source.configure(Settings())
    into = tmp_path / "cache"
    into.mkdir()
    hub.repositories[ATTACKER.id].files[name] = b"x" * 9

    async def fetch() -> None:
        try:
            await source.fetch(await source.resolve(ATTACKER, None), None, into)
        except (AdapterRefused, Unavailable):
            return

    asyncio.run(fetch())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not Path("/tmp/outside.safetensors").exists()
    assert {path.name for path in into.rglob("*")} <= set(ADAPTER)
