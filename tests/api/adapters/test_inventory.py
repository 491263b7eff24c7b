"""The startup log of adapters: how many there are, and which configs will be refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.log_lines import log_lines

from motet.api.adapters import listing
from motet.api.adapters.listing import log_inventory
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.engine.adapters.peft_config import read_config
from motet.plugins.sources.directories import DirectoryAdapters

GOOD = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


class Checker:
    """The loader's own check, in this process."""

    def __init__(self) -> None:
        self.checked: list[str] = []

    async def check_config(self, directory: str) -> None:
        self.checked.append(directory)
        read_config(Path(directory))


class Remote(AdapterSource):
    """A source whose files would have to be downloaded."""

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        raise AssertionError("nothing is fetched at the start")

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        raise AssertionError("nothing is fetched at the start")

    async def listing(self) -> Sequence[AdapterListing]:
        return [AdapterListing(AdapterRef("remote", "org/name"))]


class Broken(Remote):
    async def listing(self) -> Sequence[AdapterListing]:
        raise RuntimeError("the plugin's own fault")


def write(root: Path, name: str, **fields: object) -> None:
    (root / name).mkdir()
    (root / name / "adapter_config.json").write_text(json.dumps({**GOOD, **fields}))


def test_the_start_says_what_there_is_and_what_cannot_be_served(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "arrow", arrow_config={"top_k": 3})
    write(tmp_path, "prompt", peft_type="PROMPT_TUNING")
    checker = Checker()
    sources = {"local": DirectoryAdapters("local", [tmp_path]), "remote": Remote(), "broken": Broken()}
    with log_lines() as lines:
        asyncio.run(log_inventory(sources, checker))
    found = {line["source"]: line["adapters"] for line in lines if line["message"] == "adapters found"}
    assert found == {"local": 3, "remote": 1}
    refused = [line for line in lines if line["message"].startswith("adapter cannot be served: ")]
    assert [(line["adapter"], line["level"], line["param"]) for line in refused] == [
        ("local:arrow", "warning", "arrow_config"),
        ("local:prompt", "warning", "peft_type"),
    ]
    assert len(checker.checked) == 3
    assert str(tmp_path) not in json.dumps(refused)


def test_a_directory_of_many_is_checked_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_CHECKED", 4)
    monkeypatch.setattr(listing, "MAX_LOGGED", 1)
    for number in range(6):
        write(tmp_path, f"a{number}", use_dora=True, arrow_config={"top_k": 1})
    checker = Checker()
    with log_lines() as lines:
        asyncio.run(log_inventory({"local": DirectoryAdapters("local", [tmp_path])}, checker))
    messages = [line["message"].partition(":")[0] for line in lines]
    assert messages == ["adapters found", "adapter cannot be served", "more adapters cannot be served"]
    assert lines[-1]["adapters"] == 3
    assert len(checker.checked) == 4


def test_a_loader_that_goes_away_ends_the_check_quietly(tmp_path: Path) -> None:
    class Gone(Checker):
        async def check_config(self, directory: str) -> None:
            raise listing.MotetError("the adapter loader went away")

    write(tmp_path, "good")
    with log_lines() as lines:
        asyncio.run(log_inventory({"local": DirectoryAdapters("local", [tmp_path])}, Gone()))
    assert [line["message"] for line in lines] == ["adapters found"]
