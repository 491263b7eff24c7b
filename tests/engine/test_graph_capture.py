"""Recording on CUDA: nothing in it waits, copies or reads, and a replayed step is one copy down and one up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.triton_process import run_triton


@pytest.mark.slow  # compiles a device guard, and traces an 8B's layers on fake tensors
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_recorded_steps_are_safe_to_capture(tmp_path: Path) -> None:
    command = ["-W", "ignore", "-m", "support.capture_trace", str(tmp_path)]
    found = json.loads(run_triton(command, interpret=False, seconds=400).splitlines()[-1])
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
