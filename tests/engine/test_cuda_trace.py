"""Whole CUDA steps traced on fake tensors: shapes, dtypes, devices and strides are what the kernels take."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.triton_process import run_triton


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device guard is compiled with g++")
def test_steps_trace_on_fake_cuda(tmp_path: Path) -> None:
    output = run_triton(["-m", "support.cuda_trace", str(tmp_path)], interpret=False)
    assert output.count("FlashAttention traced") == 6
    assert output.count("VarlenAttention traced") == 3
    assert all(f"{quantize} traced" in output for quantize in ("fp8", "int8", "int4"))
