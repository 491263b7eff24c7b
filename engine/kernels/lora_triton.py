"""The segmented LoRA product on CUDA, in Triton: a shrink and an expand kernel over paged pools.

Rows are processed in tiles of up to TILE_ROWS that share a slot (as Punica's SGMV groups them: Chen et al., 2023). One
program multiplies a tile with one page of rank rows, in one `tl.dot`; so on a GPU both sizes must be powers of two,
and at least 16. LoRA ranks, pages and scales are read from the static tables on the device: nothing here depends on
which adapters a step mixes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 16
"""The Triton tile: rows of one slot that one program processes together."""

BLOCK_IN, BLOCK_OUT = 64, 64
"""Input columns that `shrink` reads at a time, and output columns of one `expand` program."""


@triton.jit
def shrink(x, a, hidden, tile_slots, tile_rows, pages, ranks, scales, inputs, x_stride, hidden_stride, max_pages,
           PARTS: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """hidden[tile row, page rows] = scale * x[row] @ a[page].T, fp32; program (tile, page)."""
    tile, page = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tile_slots + tile)
    entry = slot * PARTS + PART
    rank = tl.load(ranks + entry)
    if page * PAGE >= rank:
        return
    in_tile = tile * TILE + tl.arange(0, TILE)
    in_rank = page * PAGE + tl.arange(0, PAGE)
    rows = tl.load(tile_rows + in_tile).to(tl.int64)
    pool_rows = (tl.load(pages + entry * max_pages + page) * PAGE + tl.arange(0, PAGE)).to(tl.int64)
    total = tl.zeros((TILE, PAGE), dtype=tl.float32)
    for start in range(0, inputs, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < inputs
        x_mask = (rows >= 0)[:, None] & inside[None, :]
        x_tile = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=x_mask, other=0.0)
        a_mask = (in_rank < rank)[:, None] & inside[None, :]
        a_tile = tl.load(a + pool_rows[:, None] * inputs + columns[None, :], mask=a_mask, other=0.0)
        total = tl.dot(x_tile, tl.trans(a_tile), total, input_precision="ieee")
    target = hidden + in_tile[:, None] * hidden_stride + in_rank[None, :]
    tl.store(target, total * tl.load(scales + entry))


@triton.jit
def expand(hidden, b, y, tile_slots, tile_rows, pages, ranks, outputs, y_stride, hidden_stride, max_pages, offset,
           PARTS: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """y[row, offset + columns] += hidden[tile row] @ b[pages]; program (tile, column block)."""
    tile, block = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tile_slots + tile)
    entry = slot * PARTS + PART
    rank = tl.load(ranks + entry)
    if rank == 0:
        return
    in_tile = tile * TILE + tl.arange(0, TILE)
    rows = tl.load(tile_rows + in_tile).to(tl.int64)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < outputs
    total = tl.zeros((TILE, BLOCK), dtype=tl.float32)
    for page in range(tl.cdiv(rank, PAGE)):
        in_rank = page * PAGE + tl.arange(0, PAGE)
        live = in_rank < rank
        source = hidden + in_tile[:, None] * hidden_stride + in_rank[None, :]
        h_tile = tl.load(source, mask=live[None, :], other=0.0)
        pool_rows = (tl.load(pages + entry * max_pages + page) * PAGE + tl.arange(0, PAGE)).to(tl.int64)
        b_mask = live[:, None] & inside[None, :]
        b_tile = tl.load(b + pool_rows[:, None] * outputs + columns[None, :], mask=b_mask, other=0.0)
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
    page_rows: int,
) -> None:
    """y += the adapters' deltas, in place. x [T, in], y [T, out].

    `factors` are the A and the B pools of the fused linear layer's parts, in pages of `page_rows`; `tables` are pages
    [slots, parts, n], ranks and scales [slots, parts]; `tiles` are slots [tiles] and rows [tiles, tile size] (-1 beyond
    a tile's end), as in motet.engine.lora.
    """
    (pages, ranks, scales), (tile_slots, tile_rows) = tables, tiles
    num_tiles, tile_size = tile_rows.shape
    parts, max_pages = pages.shape[1:]
    hidden = torch.empty(num_tiles * tile_size, max_pages * page_rows, dtype=torch.float32, device=x.device)
    common: tuple[Any, ...] = (tile_slots, tile_rows, pages, ranks)
    offset = 0
    for part, (a, b) in enumerate(zip(*factors, strict=True)):
        inputs, outputs = a.shape[1], b.shape[1]
        sizes = (parts, part, tile_size, page_rows)
        down = (inputs, x.stride(0), hidden.stride(0), max_pages)
        shrink[(num_tiles, max_pages)](x, a, hidden, *common, scales, *down, *sizes, BLOCK_IN)
        up = (outputs, y.stride(0), hidden.stride(0), max_pages, offset)
        expand[(num_tiles, triton.cdiv(outputs, BLOCK_OUT))](hidden, b, y, *common, *up, *sizes, BLOCK_OUT)
        offset += outputs
