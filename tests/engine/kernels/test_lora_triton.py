"""The CUDA LoRA kernels without a GPU: interpreted against the reference, and compiled for three generations.

Each runs in a process of its own: Triton decides at import whether it interprets, and cannot compile once it does.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from motet.engine.schedule.adapter_slots import PAGE_ROWS

INTERPRET = """
import sys
import torch
from motet.engine.kernels.lora_triton import TILE_ROWS, lora_tiles
from motet.engine.lora.apply import apply_reference
from motet.engine.lora.lora_batch import slot_tiles
from motet.engine.lora.pool import LoraPool, ModuleShape, PoolSize
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement
from motet.engine.staging import StagingBuffer

torch.manual_seed(3)
page_rows = int(sys.argv[1])
pages = {8: 24, 16: 12, 32: 8}[page_rows]
linears = {"qk": (ModuleShape("q", 72, 96), ModuleShape("k", 72, 24))}
size = PoolSize(layers=1, slots=5, pages=pages, max_rank=64, page_rows=page_rows)
pool = LoraPool(linears, size, torch.device("cpu"), torch.float32)
free = {"q": list(range(pages)), "k": list(range(pages))}
for slot, ranks in enumerate([{"q": 1}, {"q": 8, "k": 16}, {"q": 17, "k": 3}, {"k": 64}]):
    places, tensors = [], {}
    for module, rank in ranks.items():
        left = free[module]
        taken = tuple(left.pop(torch.randint(len(left), ()).item()) for _ in range(-(-rank // page_rows)))
        places.append(Placement(0, module, taken, rank, 0.5 + slot))
        tensors[f"0.{module}.A"] = torch.randn(rank, 72)
        tensors[f"0.{module}.B"] = torch.randn(rank, {"q": 96, "k": 24}[module])
    install = InstallAdapter(slot, str(slot), (), tuple(places))
    pool.copy(install, tensors)
    pool.point(install)
fused = pool.layers[0]["qk"]
# Slot 4 is empty; row 3 and the last rows are the base's; slot 0 has two chunks.
chunks = (LoraChunk(0, 0, 1), LoraChunk(1, 1, 1), LoraChunk(2, 2, 1), LoraChunk(4, 4, 1), LoraChunk(3, 5, 20),
          LoraChunk(0, 25, 3), LoraChunk(1, 28, 37))
x, y = torch.randn(70, 72), torch.randn(70, 120)
expected = y.clone()
apply_reference(x, expected, fused, chunks)
result = y.clone()
tile_rows = int(sys.argv[2]) or TILE_ROWS
tiles = slot_tiles(chunks, tile_rows, StagingBuffer(1 << 16, torch.device("cpu")))
lora_tiles(x, result, (fused.a, fused.b), (fused.pages, fused.ranks, fused.scales), tiles, page_rows)
torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-3)
assert torch.equal(result[3], y[3]) and torch.equal(result[65:], y[65:])
assert (expected - y).abs().max() > 1
"""

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from motet.engine.kernels import lora_triton as kernels

common = {"tile_slots": "*i32", "tile_rows": "*i32", "pages": "*i32", "ranks": "*i32"}
sizes = dict.fromkeys(["inputs", "outputs", "x_stride", "y_stride", "hidden_stride", "max_pages", "offset"], "i32")
page_rows, tile_rows = int(sys.argv[1]), int(sys.argv[2]) or kernels.TILE_ROWS
constants = {"PARTS": 3, "PART": 1, "TILE": tile_rows, "PAGE": page_rows, "BLOCK": 64}
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


@pytest.mark.parametrize(
    ("code", "interpret", "page_rows", "tile_rows"),
    [
        pytest.param(INTERPRET, "1", PAGE_ROWS, 0, id="interpreted"),
        pytest.param(INTERPRET, "1", 8, 0, id="interpreted with pages of 8 rows"),
        pytest.param(INTERPRET, "1", 32, 32, id="interpreted with pages and tiles of 32 rows"),
        pytest.param(COMPILE, "0", PAGE_ROWS, 0, id="compiled"),
    ],
)
def test_triton(code: str, interpret: str, page_rows: int, tile_rows: int) -> None:
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, "-c", code, str(page_rows), str(tile_rows)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
