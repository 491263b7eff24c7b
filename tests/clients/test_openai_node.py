"""The openai package of npm, in a real node, against a real server. Skipped where there is no node."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from clients.environments import clients_directory, run

from motet.core.paths import build_directory

SOURCES = Path(__file__).parent / "node"
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


def packages() -> Path:
    """A directory with the packages that package.json names, installed once."""
    wanted = (SOURCES / "package.json").read_bytes()

    def fill(scratch: Path) -> None:
        (scratch / "package.json").write_bytes(wanted)
        run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=scratch)

    return build_directory(clients_directory() / f"node-{hashlib.sha256(wanted).hexdigest()[:12]}", fill)


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no node and npm here")
def test_the_whole_surface(server_url: str, tmp_path: Path) -> None:
    shutil.copy(SOURCES / "surface.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages() / "node_modules")
    assert run(["node", "surface.mjs", server_url], cwd=tmp_path).split() == list(CHECKS)
