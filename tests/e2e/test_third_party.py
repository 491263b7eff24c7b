"""A third-party distribution, installed as pip does it: each of its plugins serves a request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.server import serving
from support.third_party import sample_site, with_plugins

PIRATE = Path(__file__).parents[2] / "plugins" / "demo" / "adapters" / "pirate"


@pytest.fixture(scope="module")
def client(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a server with motet-sample installed, whose source has one adapter."""
    root = tmp_path_factory.mktemp("sample")
    shutil.copytree(PIRATE, root / "captain")
    env = with_plugins(sample_site(), MOTET_SAMPLE_ROOT=str(root))
    with serving(env=env) as server, httpx2.Client(base_url=server.url, timeout=60) as opened:
        yield opened


def ask(client: httpx2.Client, **fields: object) -> str:
    """One greedy answer."""
    body = {"messages": [{"role": "user", "content": "Is the sea wet?"}], "temperature": 0, "max_tokens": 24, **fields}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_its_adapter_source_and_chat_template(client: httpx2.Client) -> None:
    ours, theirs = ask(client, model="demo:pirate"), ask(client, model="sample:captain")
    assert theirs
    assert theirs != ours, "the same weights behind the sample's own template answer differently"


def test_its_output_format(client: httpx2.Client) -> None:
    assert ask(client, model="", response_format={"type": "yes_no"}) in ("yes", "no")
