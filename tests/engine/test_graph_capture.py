"""Recording on CUDA: nothing in it waits, copies or reads, and a replayed step is one copy down and one up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # compiles a device guard, and traces an 8B's layers on fake tensors
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_recorded_steps_are_safe_to_capture(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-m", "support.capture_trace", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "tests"}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["recorded"]) == 6, "a step and a draw of 1, 2 and 4 rows"
    for recording in found["recorded"]:
        assert recording["kernels"] > 0
        assert not recording["uploads"]
        assert not recording["downloads"]
        assert not recording["waits"]
    assert len({recording["kernels"] for recording in found["recorded"]}) == 2, "launches do not depend on the rows"
    for number, replayed in enumerate(found["replayed"]):
        assert replayed["graphs"] == (1 if number % 2 == 0 else 2), "greedy steps take their argmax eagerly"
        assert replayed["kernels"] <= 6
        assert sum(replayed["uploads"].values()) == 1
        assert sum(replayed["downloads"].values()) == 1
        # The first waits for the copy of two steps ago, which has long ended.
        assert set(replayed["waits"]) <= {"event after the upload", "event after the download"}
