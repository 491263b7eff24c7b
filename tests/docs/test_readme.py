"""README's snippets, run unchanged (except for the address) against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from docs.pages import fences, read
from docs.voices import BEGIN, END, answers, rendered

PRINTED = "http://127.0.0.1:8080"
CURL = [
    pytest.param(name, number, id=f"{name}-{number}", marks=[] if name == "README.md" else pytest.mark.slow)
    for name in ("README.md", "docs/quickstart.md", "docs/api.md")
    for number, fence in enumerate(fences(name, "bash"))
    if fence.text.startswith("curl ")
]
PYTHON = [fence.text for fence in fences("README.md", "python")]


@pytest.mark.parametrize(("name", "number"), CURL)
def test_curl(name: str, number: int, server_url: str) -> None:
    command = fences(name, "bash")[number].text
    assert PRINTED in command
    done = subprocess.run(
        ["bash", "-c", command.replace(PRINTED, server_url)], capture_output=True, text=True, timeout=300, check=True
    )
    answer = json.loads(done.stdout)
    assert "error" not in answer, answer
    content = answer["choices"][0]["message"]["content"]
    assert content.strip()
    if "response_format" in command:
        assert {"name", "age"} == set(json.loads(content))


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number: int, server_url: str) -> None:
    code = PYTHON[number]
    assert PRINTED in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace(PRINTED, server_url)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    voices = re.search(r"map\(ask, \(([^)]*)\)", code)
    for voice in re.findall(r'"([^"]+)"', voices[1]) if voices else ():
        assert re.search(rf"^{voice}: .", done.stdout, re.MULTILINE), voice


def test_the_voices_table_matches_a_real_run(server_url: str) -> None:
    """Rounding differs between CPUs, so that long texts may diverge: only their beginnings are compared."""
    table = read("README.md").split(BEGIN)[1].split(END)[0]
    fresh = rendered(answers(server_url))
    assert table.splitlines()[:4] == fresh.splitlines()[:4]
    assert table.splitlines()[5:] == fresh.splitlines()[5:]
    printed, actual = (text.splitlines()[4].split(" | ") for text in (table, fresh))
    assert [cell[:40] for cell in printed] == [cell[:40] for cell in actual]
