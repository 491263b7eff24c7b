"""Sampling on fake CUDA: a few launches whatever the rows, and nothing waits for the device before the ids are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.triton_process import run_triton

MOST_KERNELS = {"greedy": 2, "drawn": 5, "everything": 45}


@pytest.mark.slow  # imports and traces for ten seconds
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_launches_do_not_depend_on_the_rows_and_nothing_waits(tmp_path: Path) -> None:
    cases = [f"{kind}-{rows}" for kind in MOST_KERNELS for rows in (4, 32)]
    command = ["-m", "support.sampler_counts", str(tmp_path), ",".join(cases)]
    found = json.loads(run_triton(command, interpret=False, seconds=300).splitlines()[-1])
    for kind, most in MOST_KERNELS.items():
        few, many = found[f"{kind}-4"], found[f"{kind}-32"]
        assert few == many
        assert few["kernels"] <= most
        assert few["waits"] == {"event after the download": 1}, "only the read of the ids waits"
        assert (few["waits_before_read"], few["downloads"]) == (0, 1)
