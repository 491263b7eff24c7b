"""Norms, activation and rotation against their definitions in float32, and their times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu.measuring import Bench, Table, microseconds, percent, relative_error, require
from torch import Tensor

from motet.engine.layers.attention import CacheShape, attention_backend
from motet.engine.layers.elementwise import RMSNorm, silu_mul
from motet.engine.layers.forward_context import forward_context
from motet.engine.layers.rotary import RotaryTable
from motet.engine.schedule.kv_block_manager import CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE
from motet.engine.schedule.plan import SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
EPS = 1e-5


def run(bench: Bench) -> None:
    """Print the table. Raises AssertionError if a result is wrong, after all were computed."""
    torch.manual_seed(7)
    bandwidth = bench.bandwidth()
    table = Table("kernel", "rows", "largest error", "µs", f"of the roofline ({bandwidth / 1e9:.0f} GB/s)")
    worst = 0.0
    for rows in (1, 7) if bench.tiny else (1, 32, 128, 2048):
        for name, case in CASES.items():
            call, check, moved = case(bench, rows)
            call()
            error = check()
            seconds = bench.seconds(call)
            table.row(name, rows, error, microseconds(seconds), percent(moved / seconds / bandwidth))
            worst = max(worst, error)
    require(worst < TOLERANCE[bench.dtype], f"the largest error is {worst}")


def normalised(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the last dimension, in float32."""
    wide = x.float()
    return wide * (wide.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * weight.float()


Case = tuple[Callable[[], object], Callable[[], float], int]
"""A call, the error of its first result, and the bytes that it must move."""


def _norm(bench: Bench, size: int) -> RMSNorm:
    norm = RMSNorm(size, EPS)
    norm.weight = bench.random(size)
    return norm


def _rms_norm(bench: Bench, rows: int) -> Case:
    size = 96 if bench.tiny else 4096
    norm, x = _norm(bench, size), bench.random(rows, size)
    return lambda: norm(x), lambda: relative_error(norm(x), normalised(x, norm.weight)), 2 * x.nbytes


def _add_rms_norm(bench: Bench, rows: int) -> Case:
    size = 96 if bench.tiny else 4096
    norm, x, residual = _norm(bench, size), bench.random(rows, size), bench.random(rows, size)

    def error() -> float:
        own = residual.clone()
        result = norm.add(x, own)
        total = residual.float() + x.float()
        return max(relative_error(result, normalised(total, norm.weight)), relative_error(own, total))

    return lambda: norm.add(x, residual), error, 4 * x.nbytes


def _head_norm(bench: Bench, rows: int) -> Case:
    heads, size = (4, 16) if bench.tiny else (32, 128)
    norm, qkv = _norm(bench, size), bench.random(rows, (heads + 2) * size)
    original = qkv.clone()

    def error() -> float:
        own = original.clone()
        norm.heads(own, size, heads)
        expected = original.float().unflatten(1, (heads + 2, size))
        expected[:, 1:-1] = normalised(expected[:, 1:-1], norm.weight)
        return relative_error(own, expected.flatten(1))

    return lambda: norm.heads(qkv, size, heads), error, 2 * heads * size * rows * qkv.itemsize


def _silu_mul(bench: Bench, rows: int) -> Case:
    inner = 132 if bench.tiny else 14336
    x = bench.random(rows, 2 * inner)

    def error() -> float:
        gate, up = x.float().chunk(2, 1)
        return relative_error(silu_mul(x), torch.nn.functional.silu(gate) * up)

    return lambda: silu_mul(x), error, 3 * x.nbytes // 2


def _rotate(bench: Bench, rows: int) -> Case:
    heads, kv_heads, size = (4, 2, 16) if bench.tiny else (32, 8, 128)
    block_size = CUDA_BLOCK_SIZE if bench.is_cuda else CPU_BLOCK_SIZE
    blocks = -(-rows // block_size)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)
    rotary = RotaryTable(frequencies, 1.0, rows, bench.device)
    shape = CacheShape(1, blocks, block_size, heads, kv_heads, size)
    backend = attention_backend(shape, bench.device, bench.dtype)
    staging = StagingBuffer(4 << 20, bench.device)
    prompt = SequencePlan((0,) * rows, 0, tuple(range(blocks)), True)
    context = forward_context(StepPlan("", 0, (prompt,), ()), block_size, staging)
    staging.send()
    qkv = bench.random(rows, (heads + 2 * kv_heads) * size)
    original = qkv.clone()

    def error() -> float:
        own = original.clone()
        backend.store(0, own, context, rotary)
        angles = torch.arange(rows, device=bench.device)[:, None, None] * frequencies.to(bench.device)
        low, high = original.float().unflatten(1, (heads + 2 * kv_heads, 2, size // 2)).unbind(2)
        expected = torch.cat([low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()], 2)
        return relative_error(own[:, : heads * size], expected[:, :heads].flatten(1))

    moved = (2 * heads + 4 * kv_heads) * size * rows * qkv.itemsize
    return lambda: backend.store(0, qkv, context, rotary), error, moved


CASES: dict[str, Callable[[Bench, int], Case]] = {
    "RMS norm": _rms_norm,
    "add and RMS norm": _add_rms_norm,
    "head norm": _head_norm,
    "silu × up": _silu_mul,
    "rotation and cache write": _rotate,
}
