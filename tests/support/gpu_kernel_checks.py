"""The GPU kernels in Triton's interpreter against PyTorch in float64, and row by row.

`python -m support.gpu_kernel_checks quick` (or `all`) with TRITON_INTERPRET=1: Triton decides at import whether it
interprets, so the checks have a process of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.engine.kernels import gpu

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative: the last digit of each dtype, and of fp32 a few, for the sums. The interpreter cuts bf16 off, unrounded."""


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, in a tensor whose rows are slices of a wider one."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    wide = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator).to(dtype)
    return wide[..., : shape[-1]]


def close(result: Tensor, expected: Tensor) -> None:
    """`result` is the float64 `expected` but for the rounding of its dtype."""
    tolerance = TOLERANCE[result.dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """The RMS norm in float64."""
    wide = x.double()
    return wide * (wide.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def row_by_row(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """run(x), whose rows have the same bits as each row alone."""
    whole = run(x.clone())
    for row in range(len(x)):
        assert torch.equal(run(x[row : row + 1].clone())[0], whole[row]), "a row depends on its neighbours"
    return whole


def check_norms(rows: int, size: int, dtype: torch.dtype) -> None:
    """rms_norm, and add_rms_norm with the residual in place."""
    x, weight = random(rows, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    close(row_by_row(lambda x: gpu.rms_norm(x, weight, EPS), x), norm(x, weight))
    close(gpu.rms_norm(x, weight, EPS), norm(x, weight))
    pairs = random(2, rows, size, dtype=dtype, seed=2)
    residual = pairs[1].clone()
    result = gpu.add_rms_norm(pairs[0], residual, weight, EPS)
    total = pairs[0].float() + pairs[1].float()
    close(residual, total.double())
    assert dtype == torch.bfloat16 or torch.equal(residual, total.to(dtype))
    close(result, norm(residual, weight))


def check_head_norm(rows: int, size: int, dtype: torch.dtype) -> None:
    """Three heads that begin after two columns; what lies around them stays."""
    x, weight = random(rows, 3 * size + 7, dtype=dtype), random(size, dtype=dtype, seed=1)

    def run(x: Tensor) -> Tensor:
        gpu.head_norm(x, 2, 3, weight, EPS)
        return x

    result = row_by_row(run, x)
    heads = x[:, 2 : 2 + 3 * size].unflatten(1, (3, size))
    close(result[:, 2 : 2 + 3 * size], norm(heads, weight).flatten(1))
    assert torch.equal(result[:, :2], x[:, :2])
    assert torch.equal(result[:, 2 + 3 * size :], x[:, 2 + 3 * size :])


def check_silu_mul(rows: int, size: int, dtype: torch.dtype) -> None:
    """silu_mul, with gates at which an exponential overflows."""
    x = random(rows, 2 * size, dtype=dtype)
    x[0, 0], x[-1, size - 1] = -200.0, 200.0
    gate, up = x.double().chunk(2, dim=1)
    close(row_by_row(gpu.silu_mul, x), F.silu(gate) * up)


def check_rotation(rows: int, heads: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    """rotate_and_store: as transformers' rotate_half; no cache row but the step's changes, and none for a place < 0."""
    (count, kv_heads), block_size, blocks = heads, 4, 3 + rows
    qkv = random(rows, (count + 2 * kv_heads) * size, dtype=dtype)
    generator = torch.Generator().manual_seed(rows)
    places = torch.randperm(blocks * block_size, generator=generator)[:rows].int()
    positions = torch.randint(0, 50, (rows,), generator=generator, dtype=torch.int32)
    angles = torch.rand(50, size // 2, generator=generator) * 6
    parts = qkv.double().unflatten(1, (count + 2 * kv_heads, size))
    low, high = parts.chunk(2, dim=-1)
    cos, sin = angles.cos().double()[positions.long()][:, None], angles.sin().double()[positions.long()][:, None]
    rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
    for rotation in ((angles.cos(), angles.sin()), None):
        if rows > 1:
            places[0] = -1
        old = random(2, blocks, block_size, kv_heads, size, dtype=dtype, seed=3).contiguous()
        caches, turned = old.clone(), qkv.clone()
        gpu.rotate_and_store(turned, positions, places, rotation, *caches)
        expected = parts if rotation is None else rotated
        close(turned.unflatten(1, (-1, size))[:, :count], expected[:, :count])
        for cache, before, first in zip(caches, old, (count, count + kv_heads), strict=True):
            wanted = before.double().flatten(0, 1)
            source = expected if first == count else parts
            stored = places >= 0
            wanted[places[stored].long()] = source[stored, first : first + kv_heads]
            close(cache.flatten(0, 1), wanted)
            untouched = torch.ones(blocks * block_size, dtype=torch.bool)
            untouched[places[stored].long()] = False
            assert torch.equal(cache.flatten(0, 1)[untouched], before.flatten(0, 1)[untouched])


def main(sweep: str) -> None:
    """All checks, over few sizes or many."""
    quick = sweep == "quick"
    for dtype in TOLERANCE:
        for rows in (2,) if quick else (1, 3, 17):
            for size in (5, 577) if quick else (1, 5, 33, 64, 577, 4096):
                check_norms(rows, size, dtype)
                check_silu_mul(rows, size, dtype)
            for size in (5, 64) if quick else (1, 8, 33, 64, 128):
                check_head_norm(rows, size, dtype)
            for heads, size in (((9, 3), 64), ((3, 1), 6)) if quick else (
                ((1, 1), 2), ((9, 3), 64), ((32, 8), 128), ((4, 4), 80), ((5, 1), 6), ((14, 2), 256),
            ):  # fmt: skip
                check_rotation(rows, heads, size, dtype)


if __name__ == "__main__":
    main(sys.argv[1])
