"""lorax-client of PyPI, unchanged, against a real server; in an environment of its own, for what it pins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clients.environments import clients_directory, run

from motet.core.paths import build_directory

RELEASE = "0.6.3"
SURFACE = Path(__file__).parent / "lorax_surface.py"


def environment() -> Path:
    """A virtual environment with lorax-client, made once; where its packages lie."""

    def fill(scratch: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--target", str(scratch / "packages"), f"lorax-client=={RELEASE}"])

    return build_directory(clients_directory() / f"lorax-client-{RELEASE}", fill) / "packages"


def test_the_whole_surface(server_url: str) -> None:
    # -S: without the packages of our own environment.
    code = f"import sys; sys.path.insert(0, {str(environment())!r}); import runpy; sys.argv[1:] = [{server_url!r}]; "
    code += f"runpy.run_path({str(SURFACE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = "generate adapters stream sampling endings details formats merged errors embed asynchronous"
    assert done.stdout.split() == expected.split()
