"""Products with quantised weights on CUDA, in Triton.

The weight is the left factor: its 8 or 4 bits become the activations' dtype in registers, where tensor cores take the
left factor from. So the weight crosses the memory bus once, in its stored form, and a step of few tokens costs the time
of reading it. Sums are fp32, in an order that does not depend on the number of tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from motet.engine.kernels.quantized_weight import GROUP

ROW_BLOCK = 1024
"""Elements of a row that `quantize_row` reads at a time."""


@triton.jit
def quantize_row(x, values, scales, columns, x_stride, BLOCK: tl.constexpr):
    """values[row] = x[row] / scales[row] in float8_e4m3, with the row's largest value at 448; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    peak = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        part = tl.load(x + row * x_stride + at, mask=at < columns, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(part))
    scale = tl.maximum(tl.max(peak, 0) / 448.0, 1e-12)
    tl.store(scales + row, scale)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        part = tl.load(x + row * x_stride + at, mask=at < columns, other=0.0).to(tl.float32)
        scaled = tl.minimum(tl.maximum(part / scale, -448.0), 448.0)
        tl.store(values + row * columns + at, scaled.to(values.dtype.element_ty), mask=at < columns)


@triton.jit
def int8_tile(x, weight, scales, y, tokens, inputs, outputs, x_stride,
              BLOCK_OUT: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """y[tokens, outputs] = x @ (scales * weight).T for one block of outputs and one of tokens."""
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    in_y = (out < outputs)[:, None] & (token < tokens)[None, :]
    weight_rows = weight + out.to(tl.int64)[:, None] * inputs
    x_rows = x + token.to(tl.int64)[None, :] * x_stride
    total = tl.zeros((BLOCK_OUT, BLOCK_TOKENS), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_IN):
        at = start + tl.arange(0, BLOCK_IN)
        inside = at < inputs
        w = tl.load(weight_rows + at[None, :], mask=(out < outputs)[:, None] & inside[None, :], other=0)
        x_tile = tl.load(x_rows + at[:, None], mask=inside[:, None] & (token < tokens)[None, :], other=0.0)
        total = tl.dot(w.to(x_tile.dtype), x_tile, total, input_precision="ieee")
    total *= tl.load(scales + out, mask=out < outputs, other=0.0)[:, None]
    tl.store(y + token.to(tl.int64)[None, :] * outputs + out[:, None], total.to(y.dtype.element_ty), mask=in_y)


@triton.jit
def int4_tile(x, packed, scales, zeros, y, tokens, inputs, outputs, x_stride, pairs,
              BLOCK_OUT: tl.constexpr, BLOCK_TOKENS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """The same with int4 weights; a step of the loop takes a pair of groups of SIZE inputs."""
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    in_out, in_tokens = out < outputs, token < tokens
    rows = out.to(tl.int64)
    x_rows = x + token.to(tl.int64)[None, :] * x_stride
    in_group = tl.arange(0, SIZE)
    total = tl.zeros((BLOCK_OUT, BLOCK_TOKENS), dtype=tl.float32)
    for pair in range(pairs):
        at = pair * SIZE + in_group
        both = tl.load(packed + rows[:, None] * (pairs * SIZE) + at[None, :], mask=in_out[:, None], other=0)
        for half in tl.static_range(2):
            group = rows * (2 * pairs) + 2 * pair + half
            scale = tl.load(scales + group, mask=in_out, other=0.0).to(tl.float32)
            zero = tl.load(zeros + group, mask=in_out, other=0)
            value = ((both >> (4 * half)) & 15).to(tl.int8) - zero[:, None]
            column = (2 * pair + half) * SIZE + in_group
            mask = (column < inputs)[:, None] & in_tokens[None, :]
            x_tile = tl.load(x_rows + column[:, None], mask=mask, other=0.0)
            total += tl.dot(value.to(x_tile.dtype), x_tile, input_precision="ieee") * scale[:, None]
    target = y + token.to(tl.int64)[None, :] * outputs + out[:, None]
    tl.store(target, total.to(y.dtype.element_ty), mask=in_out[:, None] & in_tokens[None, :])


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of x [rows, n] as float8_e4m3 [rows, n] with an fp32 scale [rows, 1]."""
    rows, columns = x.shape
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    quantize_row[(rows,)](x, values, scales, columns, x.stride(0), ROW_BLOCK)
    return values, scales


def tile_shape(tokens: int) -> tuple[int, int, dict[str, int]]:
    """Outputs and tokens of a program's block, and its options.

    Few tokens: many small blocks that read far ahead, so that all multiprocessors together have the 2 to 3 MB in flight
    that an H100's memory needs (128 blocks for 4096 outputs, 5 loads of 2 or 4 KiB each). Many: blocks that reuse what
    they read.
    """
    if tokens <= 32:
        return 32, 16 if tokens <= 16 else 32, {"num_warps": 4, "num_stages": 6}
    size = 64 if tokens <= 64 else 128
    return size, size, {"num_warps": size // 16, "num_stages": 3}


def block_in(tokens: int) -> int:
    """Inputs that `int8_tile` reads at a time."""
    return 128 if tokens <= 32 else 64


def int8_product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """x [T, in] @ (scales [out, 1] * weight [out, in] int8).T, [T, out] in x's dtype."""
    (tokens, inputs), outputs = x.shape, len(weight)
    y = x.new_empty(tokens, outputs)
    block_out, block_tokens, options = tile_shape(tokens)
    grid = (triton.cdiv(outputs, block_out), triton.cdiv(tokens, block_tokens))
    sizes = (tokens, inputs, outputs, x.stride(0))
    int8_tile[grid](x, weight, scales, y, *sizes, block_out, block_tokens, block_in(tokens), **options)
    return y


def int4_product(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """x [T, in] @ weight.T, [T, out] in x's dtype; the weight is an Int4Weight's (quantized_weight.py)."""
    (tokens, inputs), outputs = x.shape, len(packed)
    y = x.new_empty(tokens, outputs)
    block_out, block_tokens, options = tile_shape(tokens)
    grid = (triton.cdiv(outputs, block_out), triton.cdiv(tokens, block_tokens))
    sizes = (tokens, inputs, outputs, x.stride(0), scales.shape[1] // 2)
    int4_tile[grid](x, packed, scales, zeros, y, *sizes, block_out, block_tokens, GROUP, **options)
    return y
