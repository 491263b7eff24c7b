"""The adapter rows of a step: which rows go through which adapter slot, grouped as each device's kernel needs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from motet.engine.schedule.plan import LoraChunk
from motet.engine.staging import StagingBuffer

EMPTY_SLOT = -1
"""The slot of tiles without rows."""

LONG_CHUNK = 16
"""On the CPU, chunks of at least this many rows get matrix products of their own."""


@dataclass(frozen=True)
class LoraBatch:
    """The adapter rows of a step.

    On the CPU, each row is either in one of the `long_chunks` or one of the single `rows` [R] (int32, with their
    `slots` [R]). Where the number of rows is fixed, -1 stands for none. Decode rows are always single, since a row's
    result must not depend on its neighbours.
    On CUDA, all rows are in `tiles`: slots [tiles] (EMPTY_SLOT for tiles without rows) and rows [tiles, TILE_ROWS]
    (int32, -1 beyond a tile's end), as kernels/lora_triton.py takes them. On the CPU, `tiles` is None.
    """

    long_chunks: tuple[LoraChunk, ...]
    rows: Tensor
    slots: Tensor
    tiles: tuple[Tensor, Tensor] | None


def lora_batch(chunks: tuple[LoraChunk, ...], staging: StagingBuffer, num_tiles: int | None = None) -> LoraBatch | None:
    """The batch for a plan's chunks; None when every row is the base model's.

    On CUDA, `num_tiles` sets the number of tiles, even without chunks, since a captured graph never changes it.
    Raises ValueError if the chunks need more.
    """
    if staging.device.type != "cpu":
        from motet.engine.kernels.lora_triton import TILE_ROWS

        if not chunks and num_tiles is None:
            return None
        none = staging.put([], "int32")
        return LoraBatch((), none, none, slot_tiles(chunks, TILE_ROWS, staging, num_tiles))
    if not chunks:
        return None
    short = [c for c in chunks if c.length < LONG_CHUNK]
    rows = [row for c in short for row in range(c.start, c.start + c.length)]
    slots = [c.slot for c in short for _ in range(c.length)]
    return LoraBatch(
        long_chunks=tuple(c for c in chunks if c.length >= LONG_CHUNK),
        rows=staging.put(rows, "int32"),
        slots=staging.put(slots, "int32"),
        tiles=None,
    )


def padded_lora_batch(chunks: tuple[LoraChunk, ...], count: int, staging: StagingBuffer) -> LoraBatch:
    """The batch of a step of `count` single tokens, of any adapters, in a shape that depends on `count` alone."""
    if staging.device.type != "cpu":
        batch = lora_batch(chunks, staging, num_tiles=count)
        assert batch is not None, "a number of tiles always makes a batch"
        return batch
    rows, slots = [-1] * count, [0] * count
    for i, chunk in enumerate(chunks):
        rows[i], slots[i] = chunk.start, chunk.slot
    return LoraBatch((), staging.put(rows, "int32"), staging.put(slots, "int32"), None)


def slot_tiles(
    chunks: tuple[LoraChunk, ...], tile_rows: int, staging: StagingBuffer, num_tiles: int | None = None
) -> tuple[Tensor, Tensor]:
    """The chunks' rows in tiles of one slot each: slots [tiles] and rows [tiles, tile_rows], int32, padded with -1.

    Tiles without rows make them `num_tiles`; as many tiles as rows are always enough.
    """
    by_slot: dict[int, list[int]] = {}
    for chunk in chunks:
        by_slot.setdefault(chunk.slot, []).extend(range(chunk.start, chunk.start + chunk.length))
    tiles = [(slot, rows[i : i + tile_rows]) for slot, rows in by_slot.items() for i in range(0, len(rows), tile_rows)]
    count = len(tiles) if num_tiles is None else num_tiles
    if len(tiles) > count:
        raise ValueError(f"{len(tiles)} tiles are needed, and there are {count}")
    slots = np.full(count, EMPTY_SLOT, np.int32)
    rows_of_tiles = np.full((count, tile_rows), -1, np.int32)
    for i, (slot, rows) in enumerate(tiles):
        slots[i] = slot
        rows_of_tiles[i, : len(rows)] = rows
    return staging.put(slots, "int32"), staging.put(rows_of_tiles, "int32")
