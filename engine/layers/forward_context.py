"""What every layer needs to know about a step's rows: a plan's tensors, made once per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from motet.engine.lora.lora_batch import LoraBatch, lora_batch
from motet.engine.schedule.plan import StepPlan


@dataclass(frozen=True)
class PromptChunk:
    """A sequence with several tokens in this step: `rows` of the token list, after `start` tokens in the cache.

    block_table [n] int32: the blocks of all its tokens, this step's included.
    """

    rows: slice
    start: int
    length: int
    block_table: Tensor
    _masks: dict[int, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int) -> Tensor | None:
        """The keys that each query may see, bool [length, start + length]; None for plain causal attention.

        `window` limits how far back a query looks (0: to the start). Layers with the same window share the mask.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window) if self.start or window else None
        return self._masks[window]

    def _make_mask(self, window: int) -> Tensor:
        end = self.start + self.length
        query, key = torch.arange(self.start, end)[:, None], torch.arange(end)[None, :]
        mask = key <= query
        return mask & (key > query - window) if window else mask


@dataclass(frozen=True)
class ForwardContext:
    """T tokens of S sequences; the first `num_decodes` sequences have one token each, the others are prompt chunks.

    positions [T] int64; slot_mapping [T] int64: the flat cache row (block * block size + offset) of each token's key
    and value; block_tables [S, most blocks] int32; seq_lens [S] int32: tokens of each sequence, this step's included;
    cu_seqlens_q [S + 1] and cu_seqlens_k [S + 1] int32: running sums of the step's tokens and of seq_lens, whose
    largest single values are max_seqlen_q and max_seqlen_k. sample_rows [N], prompt_logprob_rows [M] and
    pooling_rows [P] int64 are the rows that sample a token, have prompt logprobs, and return their hidden state.
    """

    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    sample_rows: Tensor
    prompt_logprob_rows: Tensor
    pooling_rows: Tensor
    num_decodes: int
    prompt_chunks: tuple[PromptChunk, ...]
    lora: LoraBatch | None


def forward_context(plan: StepPlan, block_size: int, device: torch.device) -> ForwardContext:
    """The tensors of `plan`, whose blocks have `block_size` tokens."""
    query_lens = [len(s.tokens) for s in plan.sequences]
    seq_lens = [s.start + len(s.tokens) for s in plan.sequences]
    first_rows = [0, *accumulate(query_lens)]
    positions, slot_mapping = _positions(plan, block_size)
    widest = max(len(s.block_table) for s in plan.sequences)
    num_decodes = next((i for i, length in enumerate(query_lens) if length > 1), len(query_lens))

    def tensor(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    padded_tables = [[*s.block_table, *[0] * (widest - len(s.block_table))] for s in plan.sequences]
    block_tables = tensor(padded_tables, torch.int32)
    rows = list(zip(plan.sequences, first_rows, strict=False))  # first_rows has the total as well
    prompt_logprob_rows = [first + j for s, first in rows for j in range(len(s.prompt_logprob_ids))]
    return ForwardContext(
        positions=tensor(positions, torch.long),
        slot_mapping=tensor(slot_mapping, torch.long),
        block_tables=block_tables,
        seq_lens=tensor(seq_lens, torch.int32),
        cu_seqlens_q=tensor(first_rows, torch.int32),
        cu_seqlens_k=tensor([0, *accumulate(seq_lens)], torch.int32),
        max_seqlen_q=max(query_lens),
        max_seqlen_k=max(seq_lens),
        sample_rows=tensor([first + len(s.tokens) - 1 for s, first in rows if s.sample], torch.long),
        prompt_logprob_rows=tensor(prompt_logprob_rows, torch.long),
        pooling_rows=tensor([first + j for s, first in rows if s.pooling for j in range(len(s.tokens))], torch.long),
        num_decodes=num_decodes,
        prompt_chunks=tuple(
            PromptChunk(
                rows=slice(first_rows[i], first_rows[i + 1]),
                start=plan.sequences[i].start,
                length=query_lens[i],
                block_table=block_tables[i, : len(plan.sequences[i].block_table)],
            )
            for i in range(num_decodes, len(plan.sequences))
        ),
        lora=lora_batch(plan.lora, device),
    )


def _positions(plan: StepPlan, block_size: int) -> tuple[list[int], list[int]]:
    """Each token's position in its sequence, and its flat cache row."""
    positions, slot_mapping = [], []
    for s in plan.sequences:
        for position in range(s.start, s.start + len(s.tokens)):
            positions.append(position)
            slot_mapping.append(s.block_table[position // block_size] * block_size + position % block_size)
    return positions, slot_mapping
