"""Before serving: compiles the LoRA kernels, and checks their results with a small adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.lora.apply import apply_lora, apply_reference
from motet.engine.lora.lora_batch import LoraBatch, lora_batch
from motet.engine.lora.pool import FusedLora, LoraPool, ModuleShape
from motet.engine.schedule.adapter_slots import pages_for
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement
from motet.engine.staging import StagingBuffer

ROWS = LoraChunk(slot=0, start=1, length=2)
"""The rows that use the adapter; row 0 is the base model's."""

TOLERANCE, TOLERANCE_16_BITS = 1e-4, 0.05
"""The largest difference from the reference, as a share of its largest number: in fp32, and in bf16 and fp16."""


def warm_up(pool: LoraPool, staging: StagingBuffer) -> None:
    """Compile the kernels of each fused linear layer. No adapter may be installed.

    Raises StartupError if a result is not a number or differs from the reference: Triton has compiled such kernels
    wrongly on some GPUs, and the server's answers would be garbage.
    """
    generator = torch.Generator().manual_seed(0)
    install = _install_small_adapter(pool, generator)
    staging.begin()
    batch = lora_batch((ROWS,), staging)
    staging.send()
    assert batch is not None
    for fused in pool.layers[0].values():
        _check(fused, batch, generator)
    pool.clear(install.slot)


def _install_small_adapter(pool: LoraPool, generator: torch.Generator) -> InstallAdapter:
    """Install random numbers for the first layer, in slot 0: a page and a half, pages in reverse order."""
    size = pool.size
    lora_rank = min(size.page_rows * 3 // 2, size.max_rank, size.pages * size.page_rows)
    pages = tuple(reversed(range(pages_for(lora_rank, size.page_rows))))
    shapes = [shape for shapes in pool.linears.values() for shape in shapes]
    tensors = {name: t for shape in shapes for name, t in _small_pair(shape, lora_rank, generator)}
    placements = tuple(Placement(0, shape.name, pages, lora_rank, 2.0) for shape in shapes)
    install = InstallAdapter(ROWS.slot, "", (), placements)
    pool.clear(install.slot)
    pool.copy(install, tensors)
    pool.point(install)
    return install


def _small_pair(shape: ModuleShape, lora_rank: int, generator: torch.Generator) -> list[tuple[str, Tensor]]:
    """A and B whose products are near 1."""
    a, b = (torch.randn(lora_rank, width, generator=generator) for width in (shape.inputs, shape.outputs))
    return [(f"0.{shape.name}.A", a / shape.inputs**0.5), (f"0.{shape.name}.B", b / lora_rank**0.5)]


def _check(fused: FusedLora, batch: LoraBatch, generator: torch.Generator) -> None:
    """Compare the kernels' result with the reference."""
    x = torch.randn(ROWS.start + ROWS.length, fused.a.shape[2], generator=generator).to(fused.a)
    result, expected = (torch.zeros(len(x), fused.outputs).to(x) for _ in range(2))
    if fused.tiled is not None:
        fused.tiled.hidden.fill_(torch.nan)  # so that reading what was not written shows
    apply_lora(x, result, fused, batch)
    apply_reference(x, expected, fused, (ROWS,))
    result, expected = result.float().cpu(), expected.float().cpu()
    error = float((result - expected).abs().max() / expected.abs().max())
    if not error <= (TOLERANCE if x.dtype == torch.float32 else TOLERANCE_16_BITS):
        sizes = f"{fused.a.shape[2]} inputs, {fused.outputs} outputs"
        how = f", {fused.tiled.sizes}" if fused.tiled is not None else ""
        wrong = "not a number" if error != error else f"off by {error:.2g} of the largest number"
        raise StartupError(
            f"the LoRA kernel for {', '.join(fused.parts)} ({sizes}{how}) computes wrong results on this device: "
            f"{wrong}; use the Triton version that this PyTorch was built for, or --device cpu",
            param="device",
        )
