"""The segmented LoRA product on CUDA, in Triton: two launches for a fused linear layer, whatever adapters a step mixes.

Rows are processed in tiles of up to TILE_ROWS that share a slot (as Punica's SGMV groups them: Chen et al., 2023).
`shrink` computes scale * x A of every part. To keep the whole GPU busy with few rows, it splits the inputs, and each
split writes a plane of its own; `expand` sums the planes in a fixed order while it reads them. So there are no atomics
and nothing to zero, and a row has the same bits alone and in any batch. LoRA ranks, pages and scales are read from the
static tables on the device, and the scratch memory never moves, so a captured graph can replay both kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 16
"""Rows of one slot that one program processes together: the fewest that tensor cores multiply."""


@triton.jit
def shrink(x, a, hidden, tile_slots, tile_rows, tables, x_stride,
           INPUTS: tl.constexpr, PART_SIZE: tl.constexpr, SLOT_WORDS: tl.constexpr, WORDS: tl.constexpr,
           ROW: tl.constexpr, PLANE: tl.constexpr, PART_ROW: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr,
           BLOCK: tl.constexpr, SPLITS: tl.constexpr, SHARE: tl.constexpr):  # fmt: skip
    """hidden[split, row, part's rank rows] = scale * x[row, split's columns] @ a[part, pages].T, fp32.

    Program (tile, part and split). A split has SHARE columns, the last one what is left.
    """
    tile, part, split = tl.program_id(0), tl.program_id(1) // SPLITS, tl.program_id(1) % SPLITS
    slot = tl.load(tile_slots + tile)
    entry = tables + slot.to(tl.int64) * SLOT_WORDS + part * WORDS
    rank = tl.load(entry, mask=slot >= 0, other=0)
    if rank == 0:
        return
    scale = tl.load(entry + 1).to(tl.float32, bitcast=True)
    rows = tl.load(tile_rows + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    filled = (rows >= 0)[:, None]
    in_page = tl.arange(0, PAGE)
    a_part = a + part.to(tl.int64) * PART_SIZE
    for page in range(tl.cdiv(rank, PAGE)):
        in_rank = page * PAGE + in_page
        live = (in_rank < rank)[:, None]
        pool_rows = tl.load(entry + 2 + page).to(tl.int64) * PAGE + in_page
        total = tl.zeros((TILE, PAGE), dtype=tl.float32)
        for start in range(0, SHARE, BLOCK):
            columns = split * SHARE + start + tl.arange(0, BLOCK)
            x_mask, a_mask = filled, live
            if SPLITS * SHARE != INPUTS:
                inside = (columns < INPUTS)[None, :]
                x_mask, a_mask = filled & inside, live & inside
            x_tile = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=x_mask, other=0.0)
            a_tile = tl.load(a_part + pool_rows[:, None] * INPUTS + columns[None, :], mask=a_mask, other=0.0)
            total = tl.dot(x_tile, tl.trans(a_tile), total, input_precision="ieee")
        target = hidden + split.to(tl.int64) * PLANE + rows[:, None] * ROW + part * PART_ROW + in_rank[None, :]
        tl.store(target, total * scale, mask=filled)


@triton.jit
def expand(hidden, b, y, tile_slots, tile_rows, tables, blocks, y_stride,
           POOL_ROWS: tl.constexpr, WIDTH_FACTOR: tl.constexpr, EVEN: tl.constexpr, SLOT_WORDS: tl.constexpr,
           WORDS: tl.constexpr, ROW: tl.constexpr, PLANE: tl.constexpr, PART_ROW: tl.constexpr, TILE: tl.constexpr,
           PAGE: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """y[row, offset + columns] += (sum of hidden's planes)[row, part's rank rows] @ b[part, pages].

    Program (tile, block). blocks[block] has the block's part, its first column in the part, the part's width and
    the part's offset in y; widths and offsets are multiples of WIDTH_FACTOR. With EVEN, all blocks are full.
    """
    tile, block = tl.program_id(0), tl.program_id(1)
    part = tl.load(blocks + block * 4)
    slot = tl.load(tile_slots + tile)
    entry = tables + slot.to(tl.int64) * SLOT_WORDS + part * WORDS
    rank = tl.load(entry, mask=slot >= 0, other=0)
    if rank == 0:
        return
    columns = tl.multiple_of(tl.load(blocks + block * 4 + 1), BLOCK) + tl.arange(0, BLOCK)
    width = tl.multiple_of(tl.load(blocks + block * 4 + 2), WIDTH_FACTOR)
    offset = tl.multiple_of(tl.load(blocks + block * 4 + 3), WIDTH_FACTOR)
    rows = tl.load(tile_rows + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    filled = (rows >= 0)[:, None]
    in_page = tl.arange(0, PAGE)
    target = y + rows[:, None] * y_stride + offset + columns[None, :]
    mask = filled
    if not EVEN:
        mask = filled & (columns < width)[None, :]
    before = tl.load(target, mask=mask, other=0.0)  # first, so that it is on its way together with B
    b_part = b + offset.to(tl.int64) * POOL_ROWS
    total = tl.zeros((TILE, BLOCK), dtype=tl.float32)
    for page in range(tl.cdiv(rank, PAGE)):
        in_rank = page * PAGE + in_page
        live = in_rank < rank
        pool_rows = tl.load(entry + 2 + page).to(tl.int64) * PAGE + in_page
        b_mask = live[:, None]
        if not EVEN:
            b_mask = b_mask & (columns < width)[None, :]
        b_tile = tl.load(b_part + pool_rows[:, None] * width + columns[None, :], mask=b_mask, other=0.0)
        source = hidden + rows[:, None] * ROW + part * PART_ROW + in_rank[None, :]
        h_tile = tl.zeros((TILE, PAGE), dtype=tl.float32)
        for split in tl.static_range(SPLITS):
            h_tile += tl.load(source + split * PLANE, mask=filled, other=0.0)  # 0 beyond the rank
        total = tl.dot(h_tile.to(b_tile.dtype), b_tile, total, input_precision="ieee")
    tl.store(target, (before + total).to(y.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class TileSizes:
    """How the kernels divide their work: `shrink` reads `share` inputs per split, `block_in` at a time, and `expand`
    writes `block_out` outputs per program; with `warps` (shrink, expand) per program."""

    block_in: int
    splits: int
    share: int
    block_out: int
    warps: tuple[int, int]


def tile_sizes(inputs: int, widths: Sequence[int]) -> TileSizes:
    """The sizes for a fused linear layer. They depend on its shape only, never on the batch, so that neither do bits.

    Both kernels are bound by memory: a page of A or B is read once, and each number of it is multiplied 16 times. An
    H100 has 3.35 TB/s at a latency of about 0.7 µs, so 2.3 MB must be on their way: 18 KB on each of 132 SMs.

    shrink: a block of 16 x 128 numbers takes 4 KB in bf16, and with 3 of them on their way a program of 2 warps has
    12 KB; several programs fit on an SM. A split has at least 4 blocks, so that its start (slot, rank, page) is paid
    once for 16 KB; there are at most 16 splits, since expand reads every plane. 4096 inputs make 8 splits, so one row
    through q, k and v already has 24 programs, and 8 rows have more than there are SMs.
    expand: a block of 16 x 256 takes 8 KB at once. 4 warps hold its sums in 32 registers per thread. Wider blocks
    would leave one row through `o_proj` with too few programs; narrower ones read the planes more often.
    """
    block_in = min(128, max(16, triton.next_power_of_2(inputs)))
    num_blocks = triton.cdiv(inputs, block_in)
    blocks_per_split = max(4, triton.cdiv(num_blocks, 16))
    splits = triton.cdiv(num_blocks, blocks_per_split)
    block_out = min(256, max(16, triton.next_power_of_2(max(widths))))
    return TileSizes(block_in, splits, min(blocks_per_split, num_blocks) * block_in, block_out, (2, 4))


def scratch_numbers(inputs: int, widths: Sequence[int], rank_rows: int, max_tokens: int) -> int:
    """The fp32 numbers that `shrink` hands to `expand`: a plane per split with `rank_rows` per part for each token."""
    return tile_sizes(inputs, widths).splits * max_tokens * len(widths) * rank_rows


class TiledLora:
    """Both kernels of one fused linear layer, with everything that their launches share."""

    def __init__(
        self,
        factors: tuple[Tensor, tuple[Tensor, ...]],
        tables: Tensor,
        hidden: Tensor,
        max_tokens: int,
        page_rows: int,
    ) -> None:
        """`factors` are A [parts, pool rows, inputs] and the parts' B [pool rows, outputs], which follow each other in
        memory, in pages of `page_rows`. `tables` [slots, parts, words] are as in motet.engine.lora.slot_tables.
        `hidden` has at least `scratch_numbers` fp32 numbers, for steps of at most `max_tokens` rows."""
        self.hidden, self._a, self._b, self._tables = hidden, factors[0], factors[1][0], tables
        parts, pool_rows, inputs = self._a.shape
        widths = [b.shape[1] for b in factors[1]]
        self.sizes = sizes = tile_sizes(inputs, widths)
        part_row = (tables.shape[2] - 2) * page_rows
        common: dict[str, Any] = {
            "SLOT_WORDS": tables.stride(0), "WORDS": tables.stride(1), "ROW": parts * part_row,
            "PLANE": max_tokens * parts * part_row, "PART_ROW": part_row, "TILE": TILE_ROWS, "PAGE": page_rows,
            "SPLITS": sizes.splits,
        }  # fmt: skip
        self.shrink_constants = common | {
            "INPUTS": inputs, "PART_SIZE": pool_rows * inputs, "BLOCK": sizes.block_in, "SHARE": sizes.share
        }  # fmt: skip
        self.expand_constants = common | {
            "POOL_ROWS": pool_rows, "BLOCK": sizes.block_out, "EVEN": all(w % sizes.block_out == 0 for w in widths),
            "WIDTH_FACTOR": next(n for n in (16, 8, 4, 2, 1) if all(w % n == 0 for w in widths)),
        }  # fmt: skip
        blocks = [
            (part, first, width, sum(widths[:part]))
            for part, width in enumerate(widths)
            for first in range(0, width, sizes.block_out)
        ]
        self._blocks = torch.tensor(blocks, dtype=torch.int32).to(tables.device)
        self._programs = parts * sizes.splits, len(blocks)

    def __call__(self, x: Tensor, y: Tensor, tile_slots: Tensor, tile_rows: Tensor) -> None:
        """y [T, out] += the adapters' deltas, in place; x is [T, in]. The tiles are slots [tiles] (negative: none) and
        rows [tiles, TILE_ROWS] (-1 beyond a tile's end), int32; a row is in one tile at most."""
        tiles, (warps_in, warps_out) = len(tile_slots), self.sizes.warps
        common = tile_slots, tile_rows, self._tables
        shrink[(tiles, self._programs[0])](
            x, self._a, self.hidden, *common, x.stride(0), **self.shrink_constants, num_warps=warps_in, num_stages=4
        )
        expand[(tiles, self._programs[1])](
            self.hidden, self._b, y, *common, self._blocks, y.stride(0), **self.expand_constants, num_warps=warps_out
        )
