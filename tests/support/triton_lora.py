"""Checks of the Triton LoRA kernels, each for a process of its own: `python -m support.triton_lora CHECK SWEEP`.

Triton decides at import whether it interprets, and cannot compile once it does. With `quick` for SWEEP, a
representative part runs.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motet.engine.kernels.lora_triton import TILE_ROWS, TiledLora, expand, scratch_numbers, shrink
from motet.engine.lora.apply import apply_reference
from motet.engine.lora.lora_batch import slot_tiles
from motet.engine.lora.pool import FusedLora, LoraPool, ModuleShape, PoolSize, attach_kernels
from motet.engine.schedule.adapter_slots import pages_for
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement
from motet.engine.staging import StagingBuffer

CPU = torch.device("cpu")
RANKS, QUICK_RANKS = (1, 3, 8, 16, 64, 256), (1, 3, 8, 16, 24, 40)
EMPTY = len(RANKS)
"""A slot without an adapter; slot i has an adapter of rank RANKS[i], or QUICK_RANKS[i]."""

Shape = tuple[int, tuple[int, ...]]
"""The inputs of a fused linear layer, and the outputs of each part."""

MAX_TOKENS = 64
SHAPES: dict[str, Shape] = {
    "three parts": (72, (96, 24, 24)),
    "odd widths": (37, (53, 9)),
    "split inputs": (1100, (40,)),
    "several blocks of outputs": (64, (600, 256)),
}

QUICK_SHAPE: Shape = (530, (53, 9))
"""Split inputs and odd widths together."""

Runs = Sequence[tuple[int | None, int]]
"""(slot, rows) one after the other; None: rows of the base model."""

SEGMENTS: dict[str, Runs] = {
    "identical": [(2, 1)] * 20,
    "distinct": [(slot, 1) for slot in range(len(RANKS))],
    "zipf": [(slot, 1) for slot in (0, 1, 0, 4, 0, 2, 0, 1, 3, 0, 0, 5, 1, 0, 2, 0, 0, 1, 4, 0)],
    "empty": [(EMPTY, 3), (None, 2), (EMPTY, 1)],
    "prompts": [(3, 1), (None, 2), (EMPTY, 1), (1, 20), (None, 1), (4, 16), (3, 3)],
}


@dataclass(frozen=True)
class Installed:
    """A fused linear layer with an adapter of each rank, and random inputs and outputs for it."""

    fused: FusedLora
    x: Tensor
    y: Tensor

    def apply(self, runs: Runs, num_tiles: int | None = None, rows: slice = slice(None)) -> Tensor:
        """The kernels' output for `rows` of x and y, after poisoning what they must not read."""
        tiled, chunks = self.fused.tiled, chunks_of(runs)
        assert tiled is not None
        tiled.hidden.fill_(torch.nan)
        tile_slots, tile_rows = slot_tiles(chunks, TILE_ROWS, StagingBuffer(1 << 16, CPU), num_tiles)
        y = self.y[rows].clone()
        tiled(self.x[rows], y, tile_slots, tile_rows)
        return y


def chunks_of(runs: Runs) -> tuple[LoraChunk, ...]:
    """The runs' chunks."""
    starts = itertools.accumulate((rows for _, rows in runs), initial=0)
    return tuple(
        LoraChunk(slot, start, rows) for (slot, rows), start in zip(runs, starts, strict=False) if slot is not None
    )


def installed(shape: Shape, page_rows: int, ranks: Sequence[int], generator: np.random.Generator) -> Installed:
    """Pools full of NaN, with the adapters' pages in random order. The second part lacks the adapter of slot 1."""
    inputs, widths = shape

    def random(*shape: int) -> Tensor:
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    shapes = tuple(ModuleShape(f"part{i}", inputs, width) for i, width in enumerate(widths))
    pages = sum(pages_for(rank, page_rows) for rank in ranks) + 3
    size = PoolSize(1, len(ranks) + 1, pages, max(ranks), MAX_TOKENS, page_rows)
    pool = LoraPool({"fused": shapes}, size, CPU, torch.float32)
    fused = pool.layers[0]["fused"]
    for tensor in (fused.a, *fused.b):
        tensor.fill_(torch.nan)
    free = {shape.name: generator.permutation(pages).tolist() for shape in shapes}
    for slot, rank in enumerate(ranks):
        targets = [shape for i, shape in enumerate(shapes) if (slot, i) != (1, 1)]
        placements, tensors = [], {}
        for shape in targets:
            taken = tuple(free[shape.name].pop() for _ in range(pages_for(rank, page_rows)))
            placements.append(Placement(0, shape.name, taken, rank, 0.5 + slot))
            tensors[f"0.{shape.name}.A"] = random(rank, inputs) / inputs**0.5
            tensors[f"0.{shape.name}.B"] = random(rank, shape.outputs) / rank**0.5
        install = InstallAdapter(slot, str(slot), (), tuple(placements))
        pool.copy(install, tensors)
        pool.point(install)
    attach_kernels(pool)
    return Installed(fused, random(MAX_TOKENS, inputs), random(MAX_TOKENS, sum(widths)))


def check_interpreted(sweep: str) -> None:
    """The kernels against the reference, alone and in company, with and without padding tiles."""
    full = sweep == "all"
    cases = [*((name, 16) for name in SHAPES), ("odd widths", 8), ("odd widths", 32)] if full else [("quick", 16)]
    for name, page_rows in cases:
        shape, ranks = (SHAPES[name], RANKS) if full else (QUICK_SHAPE, QUICK_RANKS)
        case = installed(shape, page_rows, ranks, np.random.default_rng(len(name)))
        for segments in SEGMENTS if full else ("distinct", "empty", "prompts"):
            check_segments(case, SEGMENTS[segments], f"{name}, pages of {page_rows}, {segments}")
        for segments in ("zipf", "identical", "prompts") if full else ("prompts",):
            check_rows_alone(case, SEGMENTS[segments])


def check_segments(case: Installed, runs: Runs, name: str) -> None:
    """One batch against the reference; base rows keep their bits, and padding tiles change nothing."""
    expected = case.y.clone()
    apply_reference(case.x, expected, case.fused, chunks_of(runs))
    result = case.apply(runs)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}")
    untouched = [row for row in range(MAX_TOKENS) if torch.equal(expected[row], case.y[row])]
    assert torch.equal(result[untouched], case.y[untouched]), name
    assert len(untouched) >= 20, name
    assert torch.equal(case.apply(runs, num_tiles=len(chunks_of(runs)) + 5), result), name


def check_rows_alone(case: Installed, runs: Runs) -> None:
    """A row has the same bits alone and in any batch."""
    together = case.apply(runs)
    for chunk in chunks_of(runs):
        for row in range(chunk.start, chunk.start + chunk.length, 7):
            alone = case.apply([(chunk.slot, 1)], rows=slice(row, row + 1))
            assert torch.equal(alone[0], together[row]), (chunk, row)


LLAMA_8B = {
    "q_proj, k_proj, v_proj": (4096, (4096, 1024, 1024)),
    "o_proj": (4096, (4096,)),
    "gate_proj, up_proj": (4096, (14336, 14336)),
    "down_proj": (14336, (4096,)),
}
ODD = {"odd widths": (577, (37, 9))}


def check_compiled(sweep: str) -> None:
    """Cubins without spilled registers for three generations; prints a table of them."""
    print("| linear layer | compute capability | kernel | registers | spilled bytes | shared bytes |")
    print("|---|---|---|---|---|---|")
    capabilities = (80, 90, 100) if sweep == "all" else (90,)
    layers = LLAMA_8B | ODD if sweep == "all" else {"odd widths": ODD["odd widths"], "o_proj": LLAMA_8B["o_proj"]}
    for name, capability in itertools.product(layers, capabilities):
        for kernel, built in compiled(layers[name], capability, aligned=name not in ODD):
            registers, spilled = resources(built.asm["cubin"])
            shared = built.metadata.shared
            print(f"| {name} | {capability / 10} | {kernel} | {registers} | {spilled} | {shared} |")
            assert spilled == 0, "registers are spilled"
            if name not in ODD:
                assert "mma.sync.aligned.m16n8k16" in built.asm["ptx"], "no tensor cores"
                assert re.search(r"cp\.async\.cg\.shared\.global.*, 0x10|ld\.global.*v4\.b32", built.asm["ptx"]), (
                    "narrow loads"
                )


def compiled(shape: Shape, capability: int, aligned: bool) -> Iterator[tuple[str, Any]]:
    """Both kernels of a layer of this shape in bf16, as launched; `aligned`: rows of x and y begin at 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tiled = meta_kernels(*shape)
    warps = dict(zip((shrink, expand), tiled.sizes.warps, strict=True))
    for kernel, constants in ((shrink, tiled.shrink_constants), (expand, tiled.expand_constants)):
        types = dict.fromkeys(["tile_slots", "tile_rows", "tables", "blocks"], "*i32")
        types |= dict.fromkeys(["x", "a", "b", "y"], "*bf16") | {"hidden": "*fp32"}
        types |= dict.fromkeys(["x_stride", "y_stride"], "i32")
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        whole = [name for name in types if name in signature and (aligned or "stride" not in name)]
        attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in whole}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
        options = {"num_warps": warps[kernel]} | ({"num_stages": 4} if kernel is shrink else {})
        yield kernel.fn.__name__, triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def meta_kernels(inputs: int, widths: tuple[int, ...]) -> TiledLora:
    """The kernels of a layer of this shape, on tensors without memory."""
    pool_rows, rank_rows, meta = 1 << 14, 256, torch.device("meta")
    a = torch.empty(len(widths), pool_rows, inputs, device=meta)
    b = tuple(torch.empty(pool_rows, width, device=meta) for width in widths)
    tables = torch.empty(33, 7 * 32, 2 + rank_rows // 16, dtype=torch.int32, device=meta)[:, : len(widths)]
    hidden = torch.empty(scratch_numbers(inputs, widths, rank_rows, 2048), device=meta)
    return TiledLora((a, b), tables, hidden, 2048, 16)


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, bytes of stack and local memory per thread, where spilled registers are)."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2]) + int(found[3])


if __name__ == "__main__":
    {"interpreted": check_interpreted, "compiled": check_compiled}[sys.argv[1]](sys.argv[2])
