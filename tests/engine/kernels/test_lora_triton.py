"""The CUDA LoRA kernels without a GPU: interpreted against the reference, and compiled for three generations."""

from __future__ import annotations

import pytest
from support.triton_process import run_triton


@pytest.mark.parametrize("check", ["interpreted", "compiled"])
@pytest.mark.parametrize("sweep", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_kernels(check: str, sweep: str) -> None:
    run_triton(["-m", "support.triton_lora", check, sweep], interpret=check == "interpreted")
