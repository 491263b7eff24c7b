"""The CUDA elementwise kernels without a GPU: interpreted against PyTorch, and compiled for three generations."""

from __future__ import annotations

import pytest
from support.triton_process import run_triton

COMPILE = """
import re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from motet.engine.kernels import gpu

# Of a model with 4096 hidden and heads of 128; and the bytes that a thread moves at once.
KERNELS = [
    (gpu._rms_norm, {"ADD": True, "BLOCK": 4096}, gpu._warps(4096), 16),
    (gpu._head_norm, {"BLOCK": 128}, 1, 8),
    (gpu._silu_mul, {"BLOCK": gpu.SILU_COLUMNS}, 4, 16),
    (gpu._rotate_and_store, {
        "HEADS": 32, "KV_HEADS": 8, "HALF": 64, "ROTATE": True, "BLOCK_HEADS": 4, "BLOCK_HALF": 64,
    }, 1, 16),
]
cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
integers = dict.fromkeys(["size", "x_stride", "residual_stride", "first", "stride"], "i32")
fixed = integers | {"eps": "fp32", "positions": "*i32", "slot_mapping": "*i32", "cos": "*fp32", "sin": "*fp32"}
for capability in sys.argv[1].split(","):
    for number in sys.argv[2].split(","):
        for kernel, constants, warps, width in KERNELS:
            names = kernel.arg_names
            signature = {
                name: "constexpr" if name in constants else fixed.get(name, f"*{number}") for name in names
            }
            # Pointers and strides are divisible by 16, as the engine's are.
            aligned = [i for i, name in enumerate(names) if name != "eps" and name not in constants]
            attrs = {(i,): [["tt.divisibility", 16]] for i in aligned}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
            target = GPUTarget("cuda", int(capability), 32)
            built = triton.compile(source, target=target, options={"num_warps": warps})
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(built.asm["cubin"])
                file.flush()
                usage = subprocess.check_output([cuobjdump, "--dump-resource-usage", file.name], text=True)
            registers, stack, local = re.search(r"REG:(\\d+) STACK:(\\d+) .* LOCAL:(\\d+)", usage).groups()
            print(capability, number, kernel.fn.__name__, registers, "registers")
            assert stack == local == "0", "registers are spilled"
            assert number == "fp32" or f".v{width // 4}.b32" in built.asm["ptx"], f"{kernel} never moves {width} bytes"
"""


@pytest.mark.parametrize("sweep", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_interpreted(sweep: str) -> None:
    run_triton(["-m", "support.gpu_kernel_checks", sweep], interpret=True)


@pytest.mark.parametrize(
    ("capabilities", "numbers"),
    [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in (("90", "bf16"), ("80,90,100", "fp32,fp16,bf16"))],
)
def test_compiled(capabilities: str, numbers: str) -> None:
    run_triton(["-c", COMPILE, capabilities, numbers], interpret=False)
