"""The one extra argument of every layer: what this step's rows are, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.engine.lora.batch import LoraBatch, lora_batch
from motet.engine.plan import StepPlan


@dataclass(frozen=True)
class ForwardContext:
    """T tokens of S sequences; the first `decodes` sequences have one token each.

    positions [T] int64; cache_rows [T] int64: flat row (block * block size + offset) that each token's key and
    value go to; tables [S, most blocks] int32; lengths [S] int32: context including this step's tokens;
    query_starts [S + 1] int32: where each sequence's rows begin; sample_rows [N] int64: rows that want a next token.
    """

    positions: Tensor
    cache_rows: Tensor
    tables: Tensor
    lengths: Tensor
    query_starts: Tensor
    sample_rows: Tensor
    decodes: int
    spans: tuple[tuple[int, int], ...]
    lora: LoraBatch | None


def forward_context(plan: StepPlan, block_size: int, device: torch.device) -> ForwardContext:
    """The tensors of `plan`. `spans[s]` is sequence s's (start position, token count)."""
    spans = tuple((s.start, len(s.tokens)) for s in plan.sequences)
    starts = [0]
    for _, count in spans:
        starts.append(starts[-1] + count)
    positions = torch.cat([torch.arange(start, start + count) for start, count in spans])
    most = max(len(s.blocks) for s in plan.sequences)
    tables = torch.tensor([[*s.blocks, *[0] * (most - len(s.blocks))] for s in plan.sequences], dtype=torch.int32)
    owner = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([count for _, count in spans]))
    cache_rows = tables[owner, positions // block_size].long() * block_size + positions % block_size
    return ForwardContext(
        positions=positions.to(device),
        cache_rows=cache_rows.to(device),
        tables=tables.to(device),
        lengths=torch.tensor([start + count for start, count in spans], dtype=torch.int32, device=device),
        query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        sample_rows=torch.tensor(
            [starts[i + 1] - 1 for i, s in enumerate(plan.sequences) if s.sample],
            dtype=torch.long,
            device=device,
        ),
        decodes=next((i for i, (_, count) in enumerate(spans) if count > 1), len(spans)),
        spans=spans,
        lora=lora_batch(plan.lora, device),
    )
