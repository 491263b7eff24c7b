"""Other people's clients and their tests, fetched once from their package indexes into the user's cache."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from motet.core.paths import build_directory, cache_directory

INSTALL_SECONDS = 300


def clients_directory() -> Path:
    """Where they are kept."""
    return cache_directory() / "clients"


def openai_sources() -> Path:
    """The sources of the installed version of the openai package, with its own tests."""
    release = version("openai")

    def fill(scratch: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        run([*pip, "--no-binary", "openai", "--dest", str(scratch), f"openai=={release}"])
        with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")

    return build_directory(clients_directory() / f"openai-{release}", fill) / f"openai-{release}"


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The output of `command`; a failure raises with everything that it said."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
