"""Codex CLI, as npm has it, in its default configuration. Skipped where there is no node and npm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from clients.environments import codex_program
from msgspec.structs import replace
from support.one_word_model import CONTEXT, WORD, write_one_word_model
from support.scripted_server import Running, scripted_server
from support.server import serving

pytestmark = pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node and npm are missing")

MCP_SERVER = Path(__file__).parent / "weather_mcp.py"
SECONDS = 60


async def codex(root: Path, url: str, model: str, *options: str) -> tuple[str, str]:
    """What `codex exec` prints for one turn: the last message, and the log."""
    home, work = root / "codex", root / "work"
    home.mkdir()
    work.mkdir()
    (home / "config.toml").write_text(
        f'model = "{model}"\nmodel_provider = "motet"\n'
        f'[model_providers.motet]\nname = "Motet"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
        f'[mcp_servers.town]\ncommand = "{sys.executable}"\nargs = ["{MCP_SERVER}"]\n'
    )
    command = [codex_program(), "exec", "--skip-git-repo-check", *options, "Is it raining?"]
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(root), "CODEX_HOME": str(home)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, log = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, log.decode()
    return printed.decode().strip(), log.decode()


def test_a_turn_with_a_real_server(tmp_path: Path, smollm2_directory: Path) -> None:
    model = write_one_word_model(tmp_path / "one-word", smollm2_directory)
    with serving("--model", str(model)) as server:
        printed, _ = asyncio.run(codex(tmp_path, server.url, "one-word"))
    assert printed == WORD


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def prompts(server: Running) -> list[str]:
    text = server.api.services.tokenizer
    return [text.decode(submit.prompt, skip_special_tokens=False) for submit in server.api.engine.submits]


def say(server: Running, *texts: str) -> None:
    """Let the model answer with these, one after another, and hold prompts of any length."""
    engine = server.api.engine
    assert engine.model is not None
    engine.model = replace(engine.model, max_context=16 * CONTEXT)
    engine.script = lambda _: texts[len(engine.submits) - 1]
    engine.at_once = 100


def test_calls_are_run_and_their_outputs_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            shell, town = call("exec_command", cmd="echo from-$((40 + 2))"), call("mcp__town__weather", city="Oslo")
            say(server, shell, town, "It rains.")
            printed, log = await codex(
                tmp_path, server.url, "tiny", "--dangerously-bypass-approvals-and-sandbox", "-c", "web_search='live'"
            )
            assert printed.endswith("It rains."), log
            first, second, third = prompts(server)
            assert "multi_agent_v1__spawn_agent" in first
            assert shell in second
            assert "from-42" in second
            assert town in third
            assert "Rain in Oslo" in third

    asyncio.run(main())


def test_a_declined_websocket_is_followed_by_http(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            say(server, "It rains.")
            option = "model_providers.motet.supports_websockets=true"
            printed, log = await codex(tmp_path, server.url, "tiny", "-c", option)
            assert printed.endswith("It rains."), log
            assert "Reconnecting" not in log

    asyncio.run(main())
