"""The attention backends against SDPA in float32, over blocks, chunks and windows; and their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from gpu.measuring import Bench, Table, microseconds, percent, relative_error, require
from torch import Tensor

from motet.engine.layers import attention
from motet.engine.layers.attention import AttentionBackend, CacheShape, CpuAttention
from motet.engine.layers.forward_context import ForwardContext, forward_context
from motet.engine.schedule.kv_block_manager import CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE
from motet.engine.schedule.plan import SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}

# What each sequence computes in each step, as tokens; 0: it pauses. Blocks have 256 tokens.
STEPS = (
    (300, 255, 700, 1, 40),
    (1, 1, 0, 500, 1),
    (1, 1, 1, 1, 0),
    (200, 1, 60, 1, 300),
    (1, 1, 1, 1, 1),
)


@dataclass
class Text:
    """One sequence: the projections of all its tokens [n, (H + 2 KV) D], its blocks, and what has been computed."""

    qkv: Tensor
    blocks: tuple[int, ...]
    done: int = 0
    outputs: list[Tensor] = field(default_factory=list)


def backends(bench: Bench) -> Iterator[tuple[str, Callable[[CacheShape], AttentionBackend]]]:
    """The backends that can be imported here, with a function that makes one."""
    if not bench.is_cuda:
        yield CpuAttention.name, CpuAttention
        return
    device, dtype = bench.device, bench.dtype
    functions = attention.flash_attention()
    if functions is not None:
        yield attention.FlashAttention.name, lambda shape: attention.FlashAttention(shape, dtype, device, functions)
    yield attention.VarlenAttention.name, lambda shape: attention.VarlenAttention(shape, dtype, device)


def run(bench: Bench) -> None:
    """Print the tables. Raises AssertionError if a result is wrong, after all were computed."""
    torch.manual_seed(6)
    makers = dict(backends(bench))
    require(bool(makers), "no attention backend can be imported")
    table = Table("backend", "heads / KV heads", "head size", "window", "largest error")
    worst: dict[str, float] = {}
    shapes = ((4, 2, 16),) if bench.tiny else ((32, 8, 128), (8, 8, 128), (32, 8, 64), (9, 3, 64))
    for name, make in makers.items():
        for heads, kv_heads, size in shapes:
            for window in (0, 100, 300):
                error = _Case(bench, (heads, kv_heads, size)).error(make, window)
                table.row(name, f"{heads} / {kv_heads}", size, window or "none", error)
                worst[name] = max(worst.get(name, 0.0), error)
    for name, make in makers.items():
        _times(bench, name, make)
    for name, error in worst.items():
        require(error < TOLERANCE[bench.dtype], f"{name}: the largest error is {error}")


def _block_size(bench: Bench) -> int:
    return CUDA_BLOCK_SIZE if bench.is_cuda else CPU_BLOCK_SIZE


class _Case:
    """Sequences whose blocks lie anywhere in the cache."""

    def __init__(self, bench: Bench, shape: tuple[int, int, int]) -> None:
        self._bench, (self._heads, self._kv, self._size) = bench, shape
        self._block_size = _block_size(bench)
        lengths = [sum(step[i] for step in STEPS) for i in range(len(STEPS[0]))]
        counts = [-(-n // self._block_size) for n in lengths]
        free = torch.randperm(sum(counts)).tolist()
        width = (self._heads + 2 * self._kv) * self._size
        self.texts = []
        for length, count in zip(lengths, counts, strict=True):
            blocks, free = free[:count], free[count:]
            self.texts.append(Text(bench.random(length, width), tuple(blocks)))
        blocks_total = sum(counts)
        self.cache = CacheShape(1, blocks_total, self._block_size, self._heads, self._kv, self._size)

    def error(self, make: Callable[[CacheShape], AttentionBackend], window: int) -> float:
        """The largest error of all steps."""
        backend = make(self.cache)
        for text in self.texts:
            text.done, text.outputs = 0, []
        for counts in STEPS:
            self._step(backend, counts, window)
        return max(relative_error(torch.cat(t.outputs), self._dense(t, window)) for t in self.texts)

    def _step(self, backend: AttentionBackend, counts: Sequence[int], window: int) -> None:
        order = sorted((i for i, n in enumerate(counts) if n), key=lambda i: counts[i] > 1)
        plans, rows = [], []
        for i in order:
            text, end = self.texts[i], self.texts[i].done + counts[i]
            table = text.blocks[: -(-end // self._block_size)]
            plans.append(SequencePlan((0,) * counts[i], text.done, table, True))
            rows.append(text.qkv[text.done : end])
        qkv, context = torch.cat(rows), _context(plans, self._bench)
        backend.store(0, qkv, context, None)
        out = backend(0, window, qkv, context)
        for i, part in zip(order, out.split([counts[i] for i in order]), strict=True):
            self.texts[i].outputs.append(part)
            self.texts[i].done += counts[i]

    def _dense(self, text: Text, window: int) -> Tensor:
        """PyTorch's attention over the whole sequence at once, in float32."""
        n, device = len(text.qkv), text.qkv.device
        parts = text.qkv.float().unflatten(1, (self._heads + 2 * self._kv, self._size)).transpose(0, 1)
        query, key, value = parts.split((self._heads, self._kv, self._kv))
        i, j = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)[None, :]
        mask = (j <= i) & (j > i - window) if window else j <= i
        result = F.scaled_dot_product_attention(query[None], key[None], value[None], mask, enable_gqa=True)
        return result[0].transpose(0, 1).flatten(1)


def _context(plans: Sequence[SequencePlan], bench: Bench) -> ForwardContext:
    staging = StagingBuffer(4 << 20, bench.device)
    staging.begin()
    context = forward_context(StepPlan("", 0, tuple(plans), ()), _block_size(bench), staging)
    staging.send()
    return context


def _times(bench: Bench, name: str, make: Callable[[CacheShape], AttentionBackend]) -> None:
    """Decode steps and prompt chunks of an 8B's layer: 32 heads, 8 KV heads of 128."""
    heads, kv, size = (4, 2, 16) if bench.tiny else (32, 8, 128)
    bandwidth, block_size = bench.bandwidth(), _block_size(bench)
    print(f"\n{name}, one layer of an 8B. The roofline share is of {bandwidth / 1e9:.0f} GB/s.")
    table = Table("sequences", "tokens of each", "context", "µs", "MB of keys and values", "of the roofline")
    cases = ((1, 1, 40), (2, 20, 40)) if bench.tiny else ((1, 1, 512), (1, 1, 8192), (32, 1, 512), (32, 1, 4096),
             (128, 1, 512), (1, 2048, 2048), (4, 512, 4096))  # fmt: skip
    for sequences, tokens, context_len in cases:
        blocks = -(-context_len // block_size)
        backend = make(CacheShape(1, sequences * blocks, block_size, heads, kv, size))
        plans = [
            SequencePlan((0,) * tokens, context_len - tokens, tuple(range(i * blocks, (i + 1) * blocks)), True)
            for i in range(sequences)
        ]
        context = _context(plans, bench)
        qkv = bench.random(sequences * tokens, (heads + 2 * kv) * size)
        seconds = bench.seconds(lambda b=backend, q=qkv, c=context: b(0, 0, q, c))
        moved = sequences * context_len * 2 * kv * size * bench.dtype.itemsize
        share = percent(moved / seconds / bandwidth) if tokens == 1 else None
        table.row(sequences, tokens, context_len, microseconds(seconds), moved / 1e6, share)
