"""The one server that the cases on adapters share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wild.adapters import AdapterServer


@pytest.fixture(scope="session")
def adapter_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterServer]:
    """A server with an adapter root and a hub, to which each case adds its adapter."""
    from wild.adapters import serve_adapters

    with serve_adapters(tmp_path_factory.mktemp("wild")) as running:
        yield running
