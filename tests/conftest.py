"""Fixtures for all tests: the converted default model, and a running server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from motet.core.paths import cache_directory

# Kernels are compiled once per machine, also when a test imports them into its own process.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_directory() / "kernels"))
os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp workqueue tbb")
# Two test processes share the cores, so OpenMP's threads must not spin for long while they wait.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """The default model as a transformers directory."""
    from support.smollm2 import smollm2_directory

    return smollm2_directory()


@pytest.fixture(scope="session")
def server_url(smollm2_directory: Path) -> Iterator[str]:
    """The address of a real server with the default model and the demo adapters."""
    from support.server import serving

    with serving() as server:
        yield server.url


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own TMPDIR. Its path is short: paths of sockets have a maximum that tmp_path's nearly reach."""
    with tempfile.TemporaryDirectory(prefix="motet-tmp-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(directory)
