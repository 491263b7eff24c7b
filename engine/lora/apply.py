"""The segmented LoRA product: y += scale * (x A) B with each row's own adapter. Base rows stay unchanged.

`apply_lora` gets the base model's output before the bias, and in row-parallel layers before the all-reduce: A is split
there like the input, so each rank adds its partial delta and LoRA needs no collective of its own.
"""

from __future__ import annotations

from torch import Tensor

from motet.engine.lora.lora_batch import LoraBatch
from motet.engine.lora.pool import FusedLora
from motet.engine.schedule.plan import LoraChunk


def apply_lora(x: Tensor, y: Tensor, fused: FusedLora, batch: LoraBatch) -> None:
    """Add each adapter row's delta to y [T, out] in place; x [T, in] is the linear layer's input."""
    if batch.tiles is not None:
        assert fused.tiled is not None, "a pool on CUDA has kernels"
        fused.tiled(x, y, *batch.tiles)
        return
    apply_reference(x, y, fused, batch.long_chunks)
    if len(batch.rows):
        from motet.engine.kernels.cpu import lora_rows

        lora_rows(x.numpy(), y.numpy(), batch.rows.numpy(), batch.slots.numpy(), *fused.arrays, fused.page_rows)


def apply_reference(x: Tensor, y: Tensor, fused: FusedLora, chunks: tuple[LoraChunk, ...]) -> None:
    """The same product with two matrix products per chunk: the kernels' specification, and fast for long chunks."""
    for chunk in chunks:
        rows = slice(chunk.start, chunk.start + chunk.length)
        for part, offset in enumerate(fused.offsets):
            pair = fused.pair(chunk.slot, part)
            if pair is not None:
                a, b, scale = pair
                y[rows, offset : offset + b.shape[1]].addmm_((x[rows] @ a.T).mul_(scale), b)
