"""lorax-client of PyPI, unchanged, against a real server; in an environment of its own, for what it pins."""

from __future__ import annotations

from pathlib import Path

from clients.environments import packages, run_apart

RELEASE = "lorax-client==0.6.3"
SURFACE = Path(__file__).parent / "lorax_surface.py"


def test_the_whole_surface(server_url: str) -> None:
    printed = run_apart(SURFACE, packages("lorax-client", RELEASE), server_url)
    expected = "generate adapters stream sampling endings details formats merged errors embed asynchronous"
    assert printed.split() == expected.split()
