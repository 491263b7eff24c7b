"""Runs registry tests twice: with the registry in this process, and over a socket."""

from __future__ import annotations

import pytest
from support.scripted_registry import OverSocket


@pytest.fixture(params=["here", "over a socket"])
def registry_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter registry in this process, and then one that is asked over a socket."""
    monkeypatch.setattr(OverSocket, "in_use", request.param != "here")
