"""The CUDA attention backends on CPU tensors against the CPU backend.

flash-attn and torch's varlen_attn are stood in for by their signatures and checks (support/flash_attn_stand_in.py); the
kernel that rotates and stores runs in Triton's interpreter, so the checks have a process of their own:
`python -m support.cuda_attention_checks quick` (or `all`) with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from support import flash_attn_stand_in as stand_in
from torch import Tensor
from torch.nn.attention import varlen

from motet.engine.layers.attention import (
    CacheShape,
    CpuAttention,
    CudaAttention,
    FlashAttention,
    VarlenAttention,
    attention_backend,
)
from motet.engine.layers.forward_context import ForwardContext, forward_context
from motet.engine.layers.rotary import RotaryTable
from motet.engine.schedule.plan import SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer

BLOCKS, BLOCK_SIZE = 12, 256
WINDOWS = (0, 1, 100, 256, 300)
TOLERANCE = 6e-3
"""fp16 has 11 bits; a token too many or too few would make a difference of about 0.1."""

STARTS = (0, 240, 500)
"""Tokens of each sequence that are in the cache before the first step."""

STEPS = ((5, 30, 1), (1, 1, 20), (1, 1, 1), (2, 1, 1))
"""Each sequence's tokens in each step: chunks, some across a block's edge, mixed steps, a decode step."""


@dataclass
class Sequence:
    """Its blocks, and how many tokens are in the cache."""

    blocks: list[int]
    done: int

    def plan(self, count: int) -> SequencePlan:
        """The next `count` tokens."""
        start, self.done = self.done, self.done + count
        return SequencePlan((0,) * count, start, tuple(self.blocks[: -(-self.done // BLOCK_SIZE)]), True)


def rotary_table(size: int) -> RotaryTable:
    """Ordinary frequencies."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, size, 2) / size)
    return RotaryTable(frequencies, 1.0, 1024, torch.device("cpu"))


def compare(backends: list[CudaAttention], cpu: CpuAttention, shape: CacheShape, rotate: bool) -> None:
    """Every backend and window after each of STEPS; `backends` share one cache, to which the first one stores."""
    generator = torch.Generator().manual_seed(shape.heads)
    for cache, exact in zip(backends[0]._caches[0], (cpu._keys, cpu._values), strict=True):
        cache.copy_(torch.randn(cache.shape, generator=generator))
        exact[0] = cache.float().transpose(1, 2)
    free = torch.randperm(BLOCKS, generator=generator).tolist()
    sequences = [Sequence(free[4 * i : 4 * i + 4], start) for i, start in enumerate(STARTS)]
    rotary = rotary_table(shape.head_dim) if rotate else None
    staging = StagingBuffer(1 << 18, torch.device("cpu"))
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    for counts in STEPS:
        plans = sorted((s.plan(n) for s, n in zip(sequences, counts, strict=True)), key=lambda p: len(p.tokens) > 1)
        staging.begin()
        context = forward_context(StepPlan("", 0, tuple(plans), ()), BLOCK_SIZE, staging)
        staging.send()
        qkv = torch.randn(sum(counts), width, generator=generator).half()
        precise = qkv.float()
        cpu.store(0, precise, context, rotary)
        backends[0].store(0, qkv, context, rotary)
        for window in (*WINDOWS, max(context.max_seqlen_k) - 1, max(context.max_seqlen_k)):
            expected = cpu(0, window, precise, context)
            for backend in backends:
                check_step(backend, window, (qkv, expected), context)


def check_step(backend: CudaAttention, window: int, tensors: tuple[Tensor, Tensor], context: ForwardContext) -> None:
    """One call of a backend: its numbers, and that decode rows pack their heads wherever flash-attn can."""
    qkv, expected = tensors
    stand_in.calls.clear()
    result = backend(0, window, qkv, context)
    assert result.dtype == torch.float16
    assert result.is_contiguous()
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=TOLERANCE)
    decodes = context.num_decodes
    assert [call.sequences for call in stand_in.calls] == [n for n in (decodes, len(context.seq_lens) - decodes) if n]
    if decodes:
        shape = backend._shape
        hides = 0 < window < context.max_seqlen_k[0]
        assert stand_in.calls[0].packed == (shape.heads > shape.kv_heads and not hides)


def main(sweep: str) -> None:
    """One shape with grouped heads, or several, with and without rotation."""
    sys.modules["flash_attn"] = stand_in
    varlen.varlen_attn = stand_in.varlen_attn
    shapes = [(6, 2, 16)] if sweep == "quick" else [(6, 2, 16), (4, 4, 8), (5, 1, 64), (8, 2, 40)]
    for heads, kv_heads, size in shapes:
        for rotate in (True,) if sweep == "quick" else (True, False):
            shape = CacheShape(1, BLOCKS, BLOCK_SIZE, heads, kv_heads, size)
            cpu = CpuAttention(shape)
            flash = attention_backend(shape, torch.device("meta"), torch.float16)
            assert isinstance(flash, FlashAttention)
            device = torch.device("cpu")
            flash = FlashAttention(shape, torch.float16, device, flash._functions)
            other = VarlenAttention(shape, torch.float16, device)
            other._caches = flash._caches
            compare([flash, other], cpu, shape, rotate)


if __name__ == "__main__":
    main(sys.argv[1])
