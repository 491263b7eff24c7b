"""Clients that must be installed: a table of the tests that run them. For programs that are not installed here, the
other files of this folder test their requests.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROGRAMS = [
    ("Codex CLI", "clients/test_codex.py", "test_a_turn_with_a_real_server"),
    ("Codex CLI with an MCP server", "clients/test_codex.py", "test_calls_are_run_and_their_outputs_come_back"),
    ("Codex CLI with WebSockets", "clients/test_codex.py", "test_a_declined_websocket_is_followed_by_http"),
    ("Claude Code's SDK for Node", "clients/test_anthropic_node.py", "test_the_whole_surface"),
    ("Anthropic's SDK for Python", "clients/test_anthropic_python.py", "test_the_whole_surface"),
    ("OpenAI's SDK for Python", "clients/test_openai_python.py", "test_a_batch_runs_beside_live_traffic"),
    (
        "OpenAI's SDK for Python, its own tests",
        "clients/test_openai_resources.py",
        "test_each_test_passes_or_meets_its",
    ),
    ("OpenAI's SDK for Node", "clients/test_openai_node.py", "test_the_whole_surface"),
    ("LangChain, openai-agents and pydantic-ai", "clients/test_frameworks.py", "test_python"),
    ("Vercel's AI SDK", "clients/test_frameworks.py", "test_node"),
    ("Ollama's client", "clients/test_ollama_client.py", "test_the_whole_surface"),
    ("LoRAX's client", "clients/test_lorax_client.py", "test_the_whole_surface"),
    ("JDK's HttpClient", "api/http/test_upgrades.py", "test_a_body_that_comes_with_an_h2c_upgrade_arrives_whole"),
]


@pytest.mark.parametrize(("program", "file", "test"), PROGRAMS, ids=[row[0] for row in PROGRAMS])
def test_a_program_is_run(program: str, file: str, test: str) -> None:
    """The test exists, and `make test-clients` runs it."""
    tree = ast.parse((ROOT / file).read_text())
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(test)]
    assert not any("slow" in ast.unparse(decorator) for decorator in found.decorator_list), program
