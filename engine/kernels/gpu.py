"""GPU kernels, in Triton, as cpu.py has them for the CPU: norm, activation, rotation with the cache write.

One program computes one row, or some heads or columns of it, in an order that only the row's width determines. So a row
has the same bits alone and in any batch. Everything is computed in fp32 and rounded once, to the tensors' dtype. No
launch reads a value on the host or depends on one, so CUDA graphs can capture them. The elements of a row are
contiguous; T is tokens, H heads, KV key-value heads, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SILU_COLUMNS = 1024
"""Columns of one `silu_mul` program: eight for each thread of four warps, which is 16 bytes of bf16."""

ROTATED_ELEMENTS = 256
"""Elements of the lower halves of the heads that one rotating program takes: eight for each thread of its warp."""

MAX_WARPS = 16


def _warps(elements: int) -> int:
    """Warps for a program that has `elements` (a power of two) in registers: 16 for each thread."""
    return min(MAX_WARPS, max(1, elements // 512))


@triton.jit
def _rms_norm(x, residual, weight, out, size, x_stride, residual_stride, eps,
              ADD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out[row] = norm of x[row], or of the sum that replaces residual[row]; program (row)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    value = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        target = residual + row * residual_stride + columns
        value += tl.load(target, mask=inside, other=0.0).to(tl.float32)
        total = value.to(residual.dtype.element_ty)
        tl.store(target, total, mask=inside)
        value = total.to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, (value * factor * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _head_norm(x, weight, first, size, x_stride, eps, BLOCK: tl.constexpr):
    """Normalise one head of x[row], which begins after column `first` and the heads before it; program (row, head)."""
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    target = x + tl.program_id(0).to(tl.int64) * x_stride + first + tl.program_id(1) * size + columns
    value = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (value * factor * scale).to(x.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(gate_up, out, size, stride, BLOCK: tl.constexpr):
    """out[row] = silu(gate) * up; program (row, column block)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    source = gate_up + row * stride + columns
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_and_store(qkv, positions, slot_mapping, cos, sin, keys, values, stride,
                      HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, ROTATE: tl.constexpr,
                      BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):  # fmt: skip
    """Some heads of qkv[row]: rotate queries in place, store rotated keys and plain values; program (row, heads)."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (heads < HEADS + 2 * KV_HEADS) & (columns < HALF)
    source = qkv + row * stride + heads * (2 * HALF) + columns
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    is_value = heads >= HEADS + KV_HEADS
    if ROTATE:
        angles = tl.load(positions + row).to(tl.int64) * HALF + columns
        c = tl.load(cos + angles, mask=columns < HALF, other=0.0)
        s = tl.load(sin + angles, mask=columns < HALF, other=0.0)
        rotated_low = tl.where(is_value, low, low * c - high * s)
        high = tl.where(is_value, high, high * c + low * s)
        low = rotated_low
        is_query = inside & (heads < HEADS)
        tl.store(source, low.to(qkv.dtype.element_ty), mask=is_query)
        tl.store(source + HALF, high.to(qkv.dtype.element_ty), mask=is_query)
    slot = tl.load(slot_mapping + row).to(tl.int64)
    stored = inside & (slot >= 0)
    key = keys + (slot * KV_HEADS + heads - HEADS) * (2 * HALF) + columns
    is_key = stored & (heads >= HEADS) & (heads < HEADS + KV_HEADS)
    tl.store(key, low.to(keys.dtype.element_ty), mask=is_key)
    tl.store(key + HALF, high.to(keys.dtype.element_ty), mask=is_key)
    value = values + (slot * KV_HEADS + heads - HEADS - KV_HEADS) * (2 * HALF) + columns
    tl.store(value, low.to(values.dtype.element_ty), mask=stored & is_value)
    tl.store(value + HALF, high.to(values.dtype.element_ty), mask=stored & is_value)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight of x [T, n], as a new tensor (Zhang and Sennrich, "RMSNorm", 2019)."""
    return _norm_rows(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, rounded to its dtype, then rms_norm(residual)."""
    return _norm_rows(x, residual, weight, eps)


def _norm_rows(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    rows, size = x.shape
    out = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    added = x if residual is None else residual
    strides = (x.stride(0), added.stride(0))
    options = {"ADD": residual is not None, "BLOCK": block, "num_warps": _warps(block)}
    _rms_norm[(rows,)](x, added, weight, out, size, *strides, eps, **options)
    return out


def head_norm(x: Tensor, first: int, heads: int, weight: Tensor, eps: float) -> None:
    """RMS-normalise `heads` heads of size len(weight) in place, from column `first` of x [T, n]."""
    size = len(weight)
    block = triton.next_power_of_2(size)
    _head_norm[(len(x), heads)](x, weight, first, size, x.stride(0), eps, BLOCK=block, num_warps=_warps(block))


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2n], as a new tensor [T, n] (Shazeer, "GLU variants", 2020)."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    grid = (rows, triton.cdiv(size, SILU_COLUMNS))
    _silu_mul[grid](gate_up, out, size, gate_up.stride(0), BLOCK=SILU_COLUMNS, num_warps=4)
    return out


def rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Rotate the queries of qkv [T, (H + 2 KV) D] in place; store its keys, rotated, and its values in the caches.

    rotation is cos and sin [positions, D / 2] (fp32), with halves as in transformers, or None: nothing is rotated.
    keys and values are one layer's caches [blocks, block size, KV, D], contiguous; slot_mapping [T] (int32, like
    positions [T]) is each row's flat place in them. A row with a negative place is not stored.
    """
    _, _, kv_heads, size = keys.shape
    half = size // 2
    heads = qkv.shape[1] // size - 2 * kv_heads
    cos, sin = rotation or (positions, positions)
    block_half = triton.next_power_of_2(half)
    block_heads = min(triton.next_power_of_2(heads + 2 * kv_heads), max(1, ROTATED_ELEMENTS // block_half))
    grid = (len(qkv), triton.cdiv(heads + 2 * kv_heads, block_heads))
    sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "HALF": half, "ROTATE": rotation is not None}
    blocks = {"BLOCK_HEADS": block_heads, "BLOCK_HALF": block_half, "num_warps": 1}
    _rotate_and_store[grid](qkv, positions, slot_mapping, cos, sin, keys, values, qkv.stride(0), **sizes, **blocks)
