"""Runs Python with Triton in a process of its own: Triton decides at import whether it interprets or compiles."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_triton(arguments: list[str], interpret: bool, seconds: float = 580) -> str:
    """The output of Python with `arguments`, which must succeed in time."""
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "PYTHONPATH": "tests"}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout
