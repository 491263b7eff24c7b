"""ollama of PyPI, unchanged, against a real server; in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from clients.environments import packages, run_apart

RELEASE = "ollama==0.6.3"
SURFACE = Path(__file__).parent / "ollama_surface.py"


def test_the_whole_surface(server_url: str) -> None:
    printed = run_apart(SURFACE, packages("ollama", RELEASE), server_url)
    assert printed.split() == ["discovery", "chat", "generate", "formats", "errors"]
