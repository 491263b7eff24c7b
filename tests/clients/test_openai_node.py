"""The openai package of npm, in a real node, against a real server. Skipped where there is no node."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clients.environments import NODE, node_packages, run

CHECKS = (
    "models",
    "chat",
    "stream",
    "tools",
    "parse",
    "logprobs",
    "completions",
    "embeddings",
    "responses",
    "batches",
    "errors",
)


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no node and npm here")
def test_the_whole_surface(server_url: str, tmp_path: Path) -> None:
    shutil.copy(NODE / "surface.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_packages() / "node_modules")
    assert run(["node", "surface.mjs", server_url], cwd=tmp_path).split() == list(CHECKS)
