"""The CUDA LoRA kernels without a GPU: interpreted against the reference, and compiled for three generations.

Each runs in a process of its own: Triton decides at import whether it interprets, and cannot compile once it does.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

INTERPRET = """
import torch
from motet.engine.kernels.lora_triton import lora_tiles
from motet.engine.lora.apply import apply_reference
from motet.engine.lora.batch import lora_batch
from motet.engine.lora.pool import LoraPool, ModuleShape, PoolSize
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement

torch.manual_seed(3)
fused = ((ModuleShape("q", 72, 96), ModuleShape("k", 72, 24)),)
pool = LoraPool(fused, PoolSize(layers=1, slots=5, pages=12, max_rank=64), torch.device("cpu"), torch.float32)
free = {"q": list(range(12)), "k": list(range(12))}
for slot, ranks in enumerate([{"q": 1}, {"q": 8, "k": 16}, {"q": 17, "k": 3}, {"k": 64}]):
    places, tensors = [], {}
    for module, rank in ranks.items():
        pages = tuple(free[module].pop(torch.randint(len(free[module]), ()).item()) for _ in range(-(-rank // 16)))
        places.append(Placement(0, module, pages, rank, 0.5 + slot))
        tensors[f"0.{module}.A"] = torch.randn(rank, 72)
        tensors[f"0.{module}.B"] = torch.randn(rank, {"q": 96, "k": 24}[module])
    install = InstallAdapter(slot, str(slot), (), tuple(places))
    pool.copy(install, tensors)
    pool.point(install)
projection = pool.layers[0][0]
# Slot 4 is empty; row 3 and the last rows are the base's; slot 0 has two chunks.
chunks = (LoraChunk(0, 0, 1), LoraChunk(1, 1, 1), LoraChunk(2, 2, 1), LoraChunk(4, 4, 1), LoraChunk(3, 5, 20),
          LoraChunk(0, 25, 3), LoraChunk(1, 28, 37))
x, y = torch.randn(70, 72), torch.randn(70, 120)
expected = y.clone()
apply_reference(x, expected, projection, chunks)
result = y.clone()
batch = lora_batch(chunks, torch.device("cpu"))
tables = (projection.pages, projection.ranks, projection.scales)
lora_tiles(x, result, (projection.a, projection.b), tables, (batch.tile_slots, batch.tile_rows))
torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-3)
assert torch.equal(result[3], y[3]) and torch.equal(result[65:], y[65:])
assert (expected - y).abs().max() > 1
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from motet.engine.kernels import lora_triton as kernels

common = {"tile_slots": "*i32", "tile_rows": "*i32", "pages": "*i32", "ranks": "*i32"}
sizes = dict.fromkeys(["inputs", "outputs", "x_stride", "y_stride", "hidden_stride", "table", "offset"], "i32")
constants = {"PARTS": 3, "PART": 1, "BLOCK": 64}
for capability in (80, 90, 100):
    for kernel in (kernels.shrink, kernels.expand):
        for number in ("fp32", "bf16"):
            tensors = dict.fromkeys(["x", "a", "b", "y"], f"*{number}") | {"hidden": "*fp32", "scales": "*fp32"}
            types = tensors | common | sizes
            signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert built.asm["cubin"], (kernel, capability, number)
"""


@pytest.mark.parametrize(("code", "interpret"), [(INTERPRET, "1"), (COMPILE, "0")], ids=["interpreted", "compiled"])
def test_triton(code: str, interpret: str) -> None:
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
