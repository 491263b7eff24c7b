"""The CUDA attention backends on CPU tensors equal the CPU backend: windows, chunks, mixed steps, grouped heads."""

from __future__ import annotations

import pytest
from support.triton_process import run_triton


@pytest.mark.parametrize("sweep", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_backends_equal_the_cpu_backend(sweep: str) -> None:
    run_triton(["-m", "support.cuda_attention_checks", sweep], interpret=True)
