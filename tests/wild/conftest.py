"""The servers that the tests share: one for adapters, and one for clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
import pytest

if TYPE_CHECKING:
    from wild.adapters import AdapterServer


@pytest.fixture(scope="session")
def adapter_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterServer]:
    """A server with an adapter root and a hub, to which each test adds its adapter."""
    from wild.adapters import serve_adapters

    with serve_adapters(tmp_path_factory.mktemp("wild")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server_url: str) -> Iterator[httpx2.Client]:
    """A client of the real server that receives the requests of known clients."""
    with httpx2.Client(base_url=server_url, timeout=120) as running:
        yield running
