"""The objects whose ids the openai package's own tests have built in, written straight into a server's database."""

from __future__ import annotations

from pathlib import Path


def seed(directory: Path) -> None:
    """Put them (back) into the data directory of a running server."""
