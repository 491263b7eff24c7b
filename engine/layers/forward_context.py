"""The one extra argument of every layer: what this step's rows are, as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from motet.engine.lora.batch import LoraBatch, lora_batch
from motet.engine.schedule.plan import StepPlan


@dataclass(frozen=True)
class ForwardContext:
    """T tokens of S sequences; the first `decodes` sequences have one token each.

    positions [T] int64; cache_rows [T] int64: flat row (block * block size + offset) that each token's key and
    value go to; tables [S, most blocks] int32; lengths [S] int32: context including this step's tokens;
    query_starts [S + 1] int32: where each sequence's rows begin; sample_rows [N] int64: rows that want a next token;
    score_rows [M] and pool_rows [P] int64: rows whose logprobs, and whose last hidden states, are wanted.
    """

    positions: Tensor
    cache_rows: Tensor
    tables: Tensor
    lengths: Tensor
    query_starts: Tensor
    sample_rows: Tensor
    score_rows: Tensor
    pool_rows: Tensor
    decodes: int
    spans: tuple[tuple[int, int], ...]
    lora: LoraBatch | None


def forward_context(plan: StepPlan, block_size: int, device: torch.device) -> ForwardContext:
    """The tensors of `plan`. `spans[s]` is sequence s's (start position, token count)."""
    spans = tuple((s.start, len(s.tokens)) for s in plan.sequences)
    starts, positions, cache_rows = [0], [], []
    for sequence, (start, count) in zip(plan.sequences, spans, strict=True):
        starts.append(starts[-1] + count)
        for position in range(start, start + count):
            positions.append(position)
            cache_rows.append(sequence.block_table[position // block_size] * block_size + position % block_size)
    most = max(len(s.block_table) for s in plan.sequences)
    sample_rows = [starts[i + 1] - 1 for i, s in enumerate(plan.sequences) if s.sample]

    scored = [starts[i] + j for i, s in enumerate(plan.sequences) for j in range(len(s.prompt_logprob_ids))]
    pooled = [row for i, s in enumerate(plan.sequences) if s.pooling for row in range(starts[i], starts[i + 1])]

    def tensor(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return ForwardContext(
        positions=tensor(positions, torch.long),
        cache_rows=tensor(cache_rows, torch.long),
        tables=tensor([[*s.block_table, *[0] * (most - len(s.block_table))] for s in plan.sequences], torch.int32),
        lengths=tensor([start + count for start, count in spans], torch.int32),
        query_starts=tensor(starts, torch.int32),
        sample_rows=tensor(sample_rows, torch.long),
        score_rows=tensor(scored, torch.long),
        pool_rows=tensor(pooled, torch.long),
        decodes=next((i for i, (_, count) in enumerate(spans) if count > 1), len(spans)),
        spans=spans,
        lora=lora_batch(plan.lora, device),
    )
