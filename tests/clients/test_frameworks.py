"""Frameworks over the openai package, as their indexes have them, against a real server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clients.environments import NODE, node_packages, packages, run, run_apart

HERE = Path(__file__).parent
RELEASES = ("langchain-openai==1.7.4", "openai-agents==0.24.0", "pydantic-ai-slim[openai]==2.68.0")


def test_python(server_url: str) -> None:
    printed = run_apart(HERE / "frameworks_surface.py", packages("frameworks", *RELEASES), server_url)
    assert printed.split() == [
        "langchain",
        "langchain_takes_back_a_call_that_was_cut",
        "langchain_embeddings",
        "agents",
        "pydantic",
    ]


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no node and npm here")
def test_node(server_url: str, tmp_path: Path) -> None:
    shutil.copy(NODE / "frameworks.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_packages() / "node_modules")
    printed = run(["node", "frameworks.mjs", server_url], cwd=tmp_path).split()
    assert printed == ["responses", "chat", "compatible", "embeddings"]
