"""The @anthropic-ai/sdk package of npm, in a real node, against a real server. Skipped where node is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clients.environments import NODE, node_packages, run

CHECKS = ("models", "messages", "stream", "tools", "counting", "errors")


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node and npm are not installed")
def test_the_whole_surface(server_url: str, tmp_path: Path) -> None:
    shutil.copy(NODE / "anthropic.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_packages() / "node_modules")
    assert run(["node", "anthropic.mjs", server_url], cwd=tmp_path).split() == list(CHECKS)
