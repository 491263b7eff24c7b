"""Marks every test in this folder with `clients`: they run third-party clients, which `make test` leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.clients)
