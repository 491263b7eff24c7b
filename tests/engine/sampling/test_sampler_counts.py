"""Sampling on fake CUDA: a few launches whatever the rows, and nothing waits for the device before the ids are read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MOST_KERNELS = {"greedy": 2, "drawn": 5, "everything": 45}


@pytest.mark.slow  # imports and traces for ten seconds
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_launches_do_not_depend_on_the_rows_and_nothing_waits(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    cases = [f"{kind}-{rows}" for kind in MOST_KERNELS for rows in (4, 32)]
    command = [sys.executable, "-m", "support.sampler_counts", str(tmp_path), ",".join(cases)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "tests"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, most in MOST_KERNELS.items():
        few, many = found[f"{kind}-4"], found[f"{kind}-32"]
        assert few == many
        assert few["kernels"] <= most
        assert few["waits"] == {"event after the download": 1}, "only the read of the ids waits"
        assert (few["waits_before_read"], few["downloads"]) == (0, 1)
