"""anthropic of PyPI, unchanged, against a real server; in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from clients.environments import packages, run_apart

RELEASE = "anthropic==2.14.0"
SURFACE = Path(__file__).parent / "anthropic_surface.py"


def test_the_whole_surface(server_url: str) -> None:
    printed = run_apart(SURFACE, packages("anthropic", RELEASE), server_url)
    expected = "models messages streaming tools counting endings errors asynchronous"
    assert printed.split() == expected.split()
