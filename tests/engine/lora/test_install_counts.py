"""An adapter's install, counted on fake CUDA: few operations, and none that the step loop waits for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.triton_process import run_triton


@pytest.mark.slow  # ten seconds for a compiler and the tensors of an 8B adapter
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_an_install_of_an_8b_adapter(tmp_path: Path) -> None:
    output = run_triton(["-W", "ignore", "-m", "support.install_counts", str(tmp_path)], interpret=False)
    counts = json.loads(output)
    change = {"launches": 0, "uploads": 1, "waits": 0}
    assert counts["clear"] == counts["point"] == change, "a change of a slot is one copy that nothing waits for"
    assert counts["copy"] == {"launches": 14, "uploads": 1, "waits": 1}, "one operation for each of the 14 pools"
