"""Third-party clients and their tests, downloaded once from their package indexes into the user's cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from motet.core.paths import build_directory, cache_directory

INSTALL_SECONDS = 300
CODEX = "0.171.0"
NODE = Path(__file__).parent / "node"


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


def packages(name: str, *releases: str) -> Path:
    """A directory with packages of PyPI that are not for our own environment, since they pin what they need."""
    wanted = hashlib.sha256(" ".join(releases).encode()).hexdigest()[:12]

    def fill(scratch: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--target", str(scratch / "packages"), *releases])

    return build_directory(clients_directory() / f"{name}-{wanted}", fill) / "packages"


def node_packages() -> Path:
    """A directory with the packages that node/package.json names."""
    wanted = (NODE / "package.json").read_bytes()

    def fill(scratch: Path) -> None:
        (scratch / "package.json").write_bytes(wanted)
        run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=scratch)

    return build_directory(clients_directory() / f"node-{hashlib.sha256(wanted).hexdigest()[:12]}", fill)


def codex_program() -> Path:
    """Codex CLI, a native program; kept apart, since it is large and one test alone needs it."""

    def fill(scratch: Path) -> None:
        (scratch / "package.json").write_text('{"private": true}')
        run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"@openai/codex@{CODEX}"], cwd=scratch)

    return build_directory(clients_directory() / f"codex-{CODEX}", fill) / "node_modules" / ".bin" / "codex"


def run_apart(script: Path, directory: Path, argument: str) -> str:
    """What a script prints that has the packages in `directory`, and none of our own environment's (hence -S)."""
    code = f"import runpy, sys; sys.path.insert(0, {str(directory)!r}); sys.argv[1:] = [{argument!r}]; "
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    return run([sys.executable, "-S", "-c", code])


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The output of `command`; a failure raises with everything that it said."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
