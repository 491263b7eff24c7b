"""The segmented LoRA product: y += scale * (x A) B, every row with its own adapter, base rows untouched.

`apply_lora` is handed the base's output before bias (and, in row-parallel layers, before the all-reduce: A is
split there with the input, so that each rank adds its partial delta and LoRA costs no collective of its own).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from motet.engine.lora.batch import LoraBatch, lora_batch
from motet.engine.lora.pool import Projection
from motet.engine.schedule.plan import LoraChunk


def apply_lora(x: Tensor, y: Tensor, projection: Projection, batch: LoraBatch) -> None:
    """Add each adapter row's delta to y [T, out] in place; x is the projection's input [T, in]."""
    if x.device.type != "cpu":
        from motet.engine.kernels.lora_triton import lora_tiles

        factors, tables = (projection.a, projection.b), (projection.pages, projection.ranks, projection.scales)
        lora_tiles(x, y, factors, tables, (batch.tile_slots, batch.tile_rows))
        return
    apply_reference(x, y, projection, batch.long)
    if len(batch.rows):
        from motet.engine.kernels.cpu import lora_rows

        lora_rows(x.numpy(), y.numpy(), batch.rows.numpy(), batch.slots.numpy(), *projection.arrays)


def apply_reference(x: Tensor, y: Tensor, projection: Projection, chunks: tuple[LoraChunk, ...]) -> None:
    """The same, chunk by chunk with plain matrix products: the specification, and the way for long chunks."""
    for chunk in chunks:
        rows = slice(chunk.start, chunk.start + chunk.length)
        for part, offset in enumerate(projection.offsets.tolist()):
            pair = projection.pair(chunk.slot, part)
            if pair is not None:
                a, b, scale = pair
                y[rows, offset : offset + b.shape[1]].addmm_((x[rows] @ a.T).mul_(scale), b)


def warm_up(projections: Iterable[Projection]) -> None:
    """Compile the kernel for each fused projection of a layer, on an empty slot."""
    for projection in projections:
        batch = lora_batch((LoraChunk(0, 0, 1),), projection.ranks.device)
        assert batch is not None
        width = sum(b.shape[1] for b in projection.b)
        x, y = (projection.a[0].new_zeros(1, size) for size in (projection.a[0].shape[1], width))
        apply_lora(x, y, projection, batch)
