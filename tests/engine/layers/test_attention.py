"""CPU attention over scattered pages against dense attention, for any way of cutting a prompt into chunks."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.layers.attention import (
    CacheShape,
    CpuAttention,
    VarlenAttention,
    attention_backend,
    flash_attention,
)
from motet.engine.layers.forward_context import Padding, forward_context
from motet.engine.schedule.plan import SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer

BLOCKS, BLOCK_SIZE = 64, 4
SHAPES = [(4, 4, 8), (6, 2, 5), (9, 3, 16), (5, 1, 32)]


@dataclass
class Text:
    """One sequence: the fused projections of all its tokens [n, (H + 2 KV) D], its blocks, and what is computed."""

    qkv: Tensor
    blocks: list[int]
    done: int = 0
    outputs: list[Tensor] = field(default_factory=list)


class Batch:
    """Sequences over one cache whose blocks are handed out in random order."""

    def __init__(self, shape: tuple[int, int, int], lengths: list[int], seed: int = 0) -> None:
        self.heads, self.kv_heads, self.size = shape
        rng = np.random.default_rng(seed)
        free = rng.permutation(BLOCKS).tolist()
        width = (self.heads + 2 * self.kv_heads) * self.size
        self.texts = [
            Text(
                torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32)),
                [free.pop() for _ in range(-(-n // BLOCK_SIZE))],
            )
            for n in lengths
        ]
        cache = CacheShape(1, BLOCKS, BLOCK_SIZE, self.heads, self.kv_heads, self.size)
        backend = attention_backend(cache, torch.device("cpu"), torch.float32)
        assert isinstance(backend, CpuAttention)
        self.attention = backend

    def step(self, counts: dict[int, int], window: int) -> None:
        """Compute the next `counts[i]` tokens of each text i, single tokens first as plans have them."""
        order = sorted(counts, key=lambda i: counts[i] > 1)
        plans, rows = [], []
        for i in order:
            text, count = self.texts[i], counts[i]
            end = text.done + count
            table = tuple(text.blocks[: -(-end // BLOCK_SIZE)])
            plans.append(SequencePlan((0,) * count, text.done, table, end == len(text.qkv)))
            rows.append(text.qkv[text.done : end])
        context = forward_context(
            StepPlan("", 0, tuple(plans), ()), BLOCK_SIZE, StagingBuffer(1 << 16, torch.device("cpu"))
        )
        qkv = torch.cat(rows)
        self.attention.store(0, qkv, context, None)
        out = self.attention(0, window, qkv, context)
        for i, part in zip(order, out.split([counts[i] for i in order]), strict=True):
            self.texts[i].outputs.append(part)
            self.texts[i].done += counts[i]

    def dense(self, text: Text, window: int) -> Tensor:
        """PyTorch's attention over the whole sequence at once: [n, H D]."""
        n = len(text.qkv)
        parts = text.qkv.unflatten(1, (self.heads + 2 * self.kv_heads, self.size)).transpose(0, 1)
        query, key, value = parts.split((self.heads, self.kv_heads, self.kv_heads))
        i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
        mask = (j <= i) & (j > i - window) if window else j <= i
        result = F.scaled_dot_product_attention(query[None], key[None], value[None], mask, enable_gqa=True)
        return result[0].transpose(0, 1).flatten(1)

    def check(self, window: int) -> None:
        """Every text's outputs are the dense ones."""
        for text in self.texts:
            expected = self.dense(text, window)[: text.done]
            torch.testing.assert_close(torch.cat(text.outputs), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    window=st.sampled_from((0, 0, 1, 3, 9, 100)),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_chunking_equals_dense_attention(
    shape: tuple[int, int, int], lengths: list[int], window: int, seed: int, data: st.DataObject
) -> None:
    batch = Batch(shape, lengths, seed)
    while any(text.done < len(text.qkv) for text in batch.texts):
        left = {i: len(t.qkv) - t.done for i, t in enumerate(batch.texts) if t.done < len(t.qkv)}
        some = data.draw(st.sets(st.sampled_from(sorted(left)), min_size=1))
        batch.step({i: min(left[i], data.draw(st.sampled_from((1, 1, 2, 5, 40)))) for i in some}, window)
    batch.check(window)


@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_decode_token_has_the_same_bits_alone_and_in_company(shape: tuple[int, int, int], window: int) -> None:
    """The caches are equal before the last step; only the company differs."""
    lengths = [1, 4, 5, 17, 33]
    together, alone = Batch(shape, lengths), Batch(shape, lengths)
    for batch in (together, alone):
        for i, length in enumerate(lengths):
            if length > 1:
                batch.step({i: length - 1}, window)
    together.step(dict.fromkeys(range(len(lengths)), 1), window)
    for i in reversed(range(len(lengths))):
        alone.step({i: 1}, window)
        assert torch.equal(together.texts[i].outputs[-1], alone.texts[i].outputs[-1])
    together.check(window)


def test_other_sequences_blocks_are_left_alone() -> None:
    """A chunk that ends inside a block writes nothing into its rest, nor anywhere else."""
    batch = Batch((2, 1, 4), [6, 9])
    for cache in (batch.attention._keys, batch.attention._values):
        cache.fill_(7.0)
    batch.step({0: 6}, 0)
    mine = set(batch.texts[0].blocks)
    for cache in (batch.attention._keys, batch.attention._values):
        assert all(bool((cache[0, b] == 7.0).all()) for b in range(BLOCKS) if b not in mine)
        assert bool((cache[0, batch.texts[0].blocks[1], :, 2:] == 7.0).all())


def test_context_of_a_plan() -> None:
    """The tensors that a plan becomes, by hand: two decodes, then a chunk over a block's edge."""
    plan = StepPlan(
        "",
        0,
        (
            SequencePlan((9,), 4, (3, 5), True),
            SequencePlan((8,), 0, (2,), False),
            SequencePlan((1, 2, 3), 3, (7, 1), True),
        ),
        (),
    )
    context = forward_context(plan, 4, StagingBuffer(1 << 16, torch.device("cpu")))
    assert context.positions.tolist() == [4, 0, 3, 4, 5]
    assert context.slot_mapping.tolist() == [5 * 4, 2 * 4, 7 * 4 + 3, 1 * 4, 1 * 4 + 1]
    assert context.block_tables.tolist() == [[3, 5], [2, 0], [7, 1]]
    assert context.seq_lens.tolist() == [5, 1, 6]
    assert [half.tolist() for half in context.cu_seqlens_q] == [[0, 1, 2], [0, 3]]
    assert context.sample_rows.tolist() == [0, 4]
    assert context.cu_seqlens_k.tolist() == [0, 5, 6, 12]
    assert (context.max_seqlen_q, context.max_seqlen_k) == ((1, 3), (5, 6))
    assert (context.num_decodes, context.lora) == (2, None)
    decodes, prompts = context.attention_rows
    assert (decodes.rows, prompts.rows) == (slice(2), slice(2, None))
    assert [rows.seq_lens.tolist() for rows in (decodes, prompts)] == [[5, 1], [6]]
    assert [rows.cu_seqlens_q.tolist() for rows in (decodes, prompts)] == [[0, 1, 2], [0, 3]]
    assert [rows.cu_seqlens_k.tolist() for rows in (decodes, prompts)] == [[0, 5, 6], [6, 12]]
    assert [rows.block_tables.tolist() for rows in (decodes, prompts)] == [[[3, 5], [2, 0]], [[7, 1]]]
    assert [(rows.max_seqlen_q, rows.max_seqlen_k) for rows in (decodes, prompts)] == [(1, 5), (3, 6)]
    (chunk,) = context.prompt_chunks
    assert (chunk.rows, chunk.start, chunk.length) == (slice(2, 5), 3, 3)
    assert chunk.block_table.tolist() == [7, 1]
    assert chunk.mask(0) is chunk.mask(0)
    assert chunk.mask(2).int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "No module named"),
        ({"flash_attn/cute/interface.py": ""}, "cannot import name"),  # flash-attn-4: a namespace package
        ({"flash_attn/__init__.py": "raise ImportError('undefined symbol: _ZN3c10')"}, "undefined symbol"),
        ({"flash_attn/__init__.py": "raise OSError('libcudart.so.12: no such file')"}, "libcudart"),
    ],
)
def test_flash_attention_is_what_can_be_imported(
    files: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    flash_attention.cache_clear()
    try:
        assert flash_attention() is None
        backend = attention_backend(CacheShape(1, 1, 256, 1, 1, 8), torch.device("meta"), torch.float16)
        assert isinstance(backend, VarlenAttention)
    finally:
        flash_attention.cache_clear()
        logger.remove(sink)
        sys.modules.pop("flash_attn", None)
    (line,) = lines
    assert said in line
    assert "make install-cuda" in line


def test_only_half_a_step_has_one_call() -> None:
    staging = StagingBuffer(1 << 16, torch.device("cpu"))
    decode, chunk = SequencePlan((9,), 4, (3,), True), SequencePlan((1, 2, 3), 0, (7,), True)
    for sequence, most in ((decode, 1), (chunk, 3)):
        staging.begin()
        (rows,) = forward_context(StepPlan("", 0, (sequence,), ()), 8, staging).attention_rows
        assert (rows.max_seqlen_q, len(rows.block_tables), len(rows.cu_seqlens_k)) == (most, 1, 2)


def test_a_padded_step_bounds_every_step_that_fits() -> None:
    """A recorded step keeps its host numbers: the longest context must be the one that the tables have room for."""
    padding = Padding(rows=4, table_width=3, scratch_block=9)
    plan = padding.fill(StepPlan("", 0, (SequencePlan((9,), 4, (3,), True),), ()))
    context = forward_context(plan, 8, StagingBuffer(1 << 16, torch.device("cpu")), padding)
    (rows,) = context.attention_rows
    assert (rows.max_seqlen_q, rows.max_seqlen_k) == (1, 24)
    assert rows.block_tables.shape == (4, 3)
    assert context.slot_mapping.tolist() == [28, 72, 72, 72]


@pytest.mark.parametrize("head_dim", [20, 264])
def test_a_head_size_that_no_cuda_kernel_supports(head_dim: int) -> None:
    with pytest.raises(StartupError, match=rf"head size is {head_dim}; .* multiple of 8"):
        attention_backend(CacheShape(1, 1, 256, 1, 1, head_dim), torch.device("cuda"), torch.float16)
