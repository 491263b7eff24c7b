"""The openai package's own resource tests, from its sources, against a real server.

Each test either passes or meets exactly the error that `openai_resources.json` says: they send things like
`max_tokens=0` and `audio`, which a mock swallows and a server refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from clients.environments import openai_sources
from support.server import serving
from support.tiny_chat_model import write_chat_model

HERE = Path(__file__).parent
EXPECTED = HERE / "openai_resources.json"
NAMES = ("gpt-6-astra", "gpt-3.5-turbo-instruct", "gpt-4o-mini", "text-embedding-3-small", "gpt-4o", "gpt-5.1")
TESTS = (
    "chat/test_completions.py",
    "test_completions.py",
    "test_embeddings.py",
    "test_models.py",
    "test_files.py",
    "test_batches.py",
    "test_responses.py",
    "responses",
    "test_moderations.py",
)


def report(tmp_path: Path) -> dict[str, str]:
    """What each test met: `passed`, or status, code and param of the error.

    Where its runs (sync or not, strict or not) met several things, all of them: the package's strict client takes no
    vectors in base64, which the package itself asks for.
    """
    model = write_chat_model(tmp_path / "model")
    aliases = [word for name in NAMES for word in ("--model-alias", name)]
    settings = ["--model", str(model), "--max-context", "160", "--data-dir", str(tmp_path / "data"), *aliases]
    sources = openai_sources()
    with serving(*settings) as server:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(HERE), str(sources))),
            "TEST_API_BASE_URL": f"{server.url}/v1",
            "MOTET_REPORT": str(tmp_path / "report.json"),
            "MOTET_SEEDS": str(tmp_path / "data"),
        }
        options = [
            "-q",
            "-p",
            "resource_report",
            "-p",
            "no:cacheprovider",
            "--override-ini",
            "addopts=",
            "--timeout=60",
        ]
        paths = [f"tests/api_resources/{name}" for name in TESTS]
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *paths],
            cwd=sources,
            env=environment,
            stdout=subprocess.DEVNULL,
            timeout=400,
        )
    return dict(json.loads((tmp_path / "report.json").read_text()))


def test_each_test_passes_or_meets_its_documented_error(tmp_path: Path) -> None:
    met = report(tmp_path)
    assert len(met) > 80
    table: dict[str, str] = json.loads(EXPECTED.read_text())
    wrong = {name: found for name, found in met.items() if found != table.get(name, "passed")}
    assert wrong == {}
    assert sorted(set(table) - set(met)) == [], "the table names tests that are not there"


if __name__ == "__main__":  # writes the table anew; read what changed before you believe it
    found = report(Path(sys.argv[1]))
    EXPECTED.write_text(json.dumps({n: met for n, met in found.items() if met != "passed"}, indent=2) + "\n")
