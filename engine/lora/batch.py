"""Which rows of a step go through which adapter slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.engine.plan import LoraChunk

LONG_CHUNK = 16
"""Chunks of at least this many rows are worth a matrix product of their own on the CPU."""


@dataclass(frozen=True)
class LoraBatch:
    """The adapter rows of a step. `long` chunks and single `rows` (int32, with their `slots`) together are all.

    Decode rows are always single: how a row is computed must not depend on its neighbours.
    """

    chunks: tuple[LoraChunk, ...]
    long: tuple[LoraChunk, ...]
    rows: Tensor
    slots: Tensor


def lora_batch(chunks: tuple[LoraChunk, ...], device: torch.device) -> LoraBatch | None:
    """The batch for a plan's chunks; None when every row is the base model's."""
    if not chunks:
        return None
    short = [c for c in chunks if c.length < LONG_CHUNK]
    rows = [row for c in short for row in range(c.start, c.start + c.length)]
    slots = [c.slot for c in short for _ in range(c.length)]
    return LoraBatch(
        chunks=chunks,
        long=tuple(c for c in chunks if c.length >= LONG_CHUNK),
        rows=torch.tensor(rows, dtype=torch.int32, device=device),
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
    )
