"""Which rows of a step go through which adapter slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.engine.schedule.plan import LoraChunk

LONG_CHUNK = 16
"""Chunks of at least this many rows are worth a matrix product of their own on the CPU."""


TILE = 16
"""Rows of one slot that a CUDA program takes together."""


@dataclass(frozen=True)
class LoraBatch:
    """The adapter rows of a step, as the CPU and as CUDA want them.

    `long` chunks and single `rows` (int32, with their `slots`) together are all; decode rows are always single, since
    how a row is computed must not depend on its neighbours. tile_slots [tiles] and tile_rows [tiles, 16] (int32, -1
    beyond a tile's end) are the same rows grouped by slot.
    """

    chunks: tuple[LoraChunk, ...]
    long: tuple[LoraChunk, ...]
    rows: Tensor
    slots: Tensor
    tile_slots: Tensor
    tile_rows: Tensor


def lora_batch(chunks: tuple[LoraChunk, ...], device: torch.device) -> LoraBatch | None:
    """The batch for a plan's chunks; None when every row is the base model's."""
    if not chunks:
        return None
    short = [c for c in chunks if c.length < LONG_CHUNK]
    rows = [row for c in short for row in range(c.start, c.start + c.length)]
    slots = [c.slot for c in short for _ in range(c.length)]
    tile_slots, tile_rows = _tiles(chunks)
    return LoraBatch(
        chunks=chunks,
        long=tuple(c for c in chunks if c.length >= LONG_CHUNK),
        rows=torch.tensor(rows, dtype=torch.int32, device=device),
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
        tile_slots=torch.tensor(tile_slots, dtype=torch.int32, device=device),
        tile_rows=torch.tensor(tile_rows, dtype=torch.int32, device=device),
    )


def _tiles(chunks: tuple[LoraChunk, ...]) -> tuple[list[int], list[list[int]]]:
    by_slot: dict[int, list[int]] = {}
    for chunk in chunks:
        by_slot.setdefault(chunk.slot, []).extend(range(chunk.start, chunk.start + chunk.length))
    tiles = [(slot, rows[i : i + TILE]) for slot, rows in by_slot.items() for i in range(0, len(rows), TILE)]
    return [slot for slot, _ in tiles], [[*rows, *[-1] * (TILE - len(rows))] for _, rows in tiles]
