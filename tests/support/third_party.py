"""Installs tests/third_party/motet_sample as pip does, into a separate directory: the environment does not change.

env = with_plugins(sample_site())      # for a process that loads the plugin
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "third_party" / "motet_sample"


@functools.cache
def sample_site() -> Path:
    """A directory for PYTHONPATH with motet-sample installed; built once per test run."""
    place = Path(tempfile.mkdtemp(prefix="motet-sample-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    # The build writes into its source directory, so that it gets a copy.
    sources = shutil.copytree(SOURCE, place / "sources", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", str(place / "site"), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"pip install motet-sample failed:\n{done.stdout}{done.stderr}")
    return place / "site"


def fake_site(place: Path, name: str, code: str) -> Path:
    """A directory for PYTHONPATH with a distribution `name` whose plugin module contains `code`."""
    module = name.replace("-", "_")
    (place / f"{module}.py").write_text(code)
    info = place / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[motet]\n{module} = {module}\n")
    return place


def with_plugins(*sites: Path, **variables: str) -> dict[str, str]:
    """This process's environment with `sites` on PYTHONPATH and `variables` set."""
    paths = [*map(str, sites), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
