"""The segmented LoRA product on CUDA, in Triton: a shrink and an expand kernel over paged pools.

Rows are taken in tiles of up to 16 that share a slot (as Punica's SGMV groups them: Chen et al., 2023); one page of a
pool is 16 rank rows, so that a page and a tile make one dot of the hardware's smallest shape. Ranks, pages and scales
are read from the static tables on the device: nothing here depends on which adapters a step mixes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_IN, BLOCK_OUT = 64, 64


@triton.jit
def shrink(x, a, hidden, tile_slots, tile_rows, pages, ranks, scales, inputs, x_stride, hidden_stride, table,
           PARTS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """hidden[tile row, page rows] = scale * x[row] @ a[page].T, fp32; program (tile, page)."""
    tile, page = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tile_slots + tile)
    entry = slot * PARTS + PART
    rank = tl.load(ranks + entry)
    if page * 16 >= rank:
        return
    lane = tl.arange(0, 16)
    rows = tl.load(tile_rows + tile * 16 + lane).to(tl.int64)
    rank_rows = (tl.load(pages + entry * table + page) * 16 + lane).to(tl.int64)
    total = tl.zeros((16, 16), dtype=tl.float32)
    for start in range(0, inputs, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < inputs
        x_mask = (rows >= 0)[:, None] & inside[None, :]
        x_tile = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=x_mask, other=0.0)
        a_mask = (page * 16 + lane < rank)[:, None] & inside[None, :]
        a_tile = tl.load(a + rank_rows[:, None] * inputs + columns[None, :], mask=a_mask, other=0.0)
        total = tl.dot(x_tile, tl.trans(a_tile), total, input_precision="ieee")
    target = hidden + (tile * 16 + lane)[:, None] * hidden_stride + (page * 16 + lane)[None, :]
    tl.store(target, total * tl.load(scales + entry))


@triton.jit
def expand(hidden, b, y, tile_slots, tile_rows, pages, ranks, outputs, y_stride, hidden_stride, table, offset,
           PARTS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """y[row, offset + columns] += hidden[tile row] @ b[pages]; program (tile, column block)."""
    tile, block = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tile_slots + tile)
    entry = slot * PARTS + PART
    rank = tl.load(ranks + entry)
    if rank == 0:
        return
    lane = tl.arange(0, 16)
    rows = tl.load(tile_rows + tile * 16 + lane).to(tl.int64)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < outputs
    total = tl.zeros((16, BLOCK), dtype=tl.float32)
    for page in range(tl.cdiv(rank, 16)):
        live = page * 16 + lane < rank
        source = hidden + (tile * 16 + lane)[:, None] * hidden_stride + (page * 16 + lane)[None, :]
        h_tile = tl.load(source, mask=live[None, :], other=0.0)
        rank_rows = (tl.load(pages + entry * table + page) * 16 + lane).to(tl.int64)
        b_mask = live[:, None] & inside[None, :]
        b_tile = tl.load(b + rank_rows[:, None] * outputs + columns[None, :], mask=b_mask, other=0.0)
        total = tl.dot(h_tile, b_tile.to(tl.float32), total, input_precision="ieee")
    target = y + rows[:, None] * y_stride + offset + columns[None, :]
    mask = (rows >= 0)[:, None] & inside[None, :]
    tl.store(target, (tl.load(target, mask=mask, other=0.0) + total).to(y.dtype.element_ty), mask=mask)


def lora_tiles(
    x: Tensor,
    y: Tensor,
    factors: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    tables: tuple[Tensor, Tensor, Tensor],
    tiles: tuple[Tensor, Tensor],
) -> None:
    """y += the adapters' deltas, in place. x [T, in], y [T, out].

    `factors` are the A and the B pools of the fused projection's parts, `tables` pages [slots, parts, n], ranks and
    scales [slots, parts], and `tiles` slots [tiles] and rows [tiles, 16] (-1 beyond a tile's end), as in
    motet.engine.lora.
    """
    (pages, ranks, scales), (tile_slots, tile_rows) = tables, tiles
    count, tile = tile_rows.shape
    parts, max_pages = pages.shape[1:]
    hidden = torch.empty(count * tile, max_pages * tile, dtype=torch.float32, device=x.device)
    inside: tuple[Any, ...] = (tile_slots, tile_rows, pages, ranks)
    offset = 0
    for part, (a, b) in enumerate(zip(*factors, strict=True)):
        inputs, outputs = a.shape[1], b.shape[1]
        down = (inputs, x.stride(0), hidden.stride(0), max_pages)
        shrink[(count, max_pages)](x, a, hidden, *inside, scales, *down, parts, part, BLOCK_IN)
        up = (outputs, y.stride(0), hidden.stride(0), max_pages, offset)
        expand[(count, triton.cdiv(outputs, BLOCK_OUT))](hidden, b, y, *inside, *up, parts, part, BLOCK_OUT)
        offset += outputs
