"""The CUDA LoRA kernels without a GPU: interpreted against the reference, and compiled for three generations."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(check: str, sweep: str) -> str:
    """The output of one of the checks in support/triton_lora.py."""
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": str(int(check == "interpreted")), "PYTHONPATH": "tests"}
    command = [sys.executable, "-m", "support.triton_lora", check, sweep]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("check", ["interpreted", "compiled"])
@pytest.mark.parametrize("sweep", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_kernels(check: str, sweep: str) -> None:
    run(check, sweep)
