"""What every layer needs to know about a step's rows: a plan's tensors, made once per step."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from motet.engine.lora.lora_batch import LoraBatch, lora_batch, padded_lora_batch
from motet.engine.schedule.plan import SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer


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
class Padding:
    """Pads a step of single tokens to `rows` rows and every block table to `table_width`, so that its shapes are fixed.

    The added rows compute a token of the base model at position 0 of the block `scratch_block`.
    """

    rows: int
    table_width: int
    scratch_block: int

    def fill(self, plan: StepPlan) -> StepPlan:
        """The plan with the added rows."""
        filler = SequencePlan((0,), 0, (self.scratch_block,), True)
        added = (filler,) * (self.rows - len(plan.sequences))
        return msgspec.structs.replace(plan, sequences=(*plan.sequences, *added))


@dataclass(frozen=True)
class AttentionRows:
    """What one attention call needs to know of S sequences: the `rows` of the token list that are theirs, and of the
    ForwardContext's numbers their part."""

    rows: slice
    block_tables: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


@dataclass(frozen=True)
class ForwardContext:
    """T tokens of S sequences; the first `num_decodes` (D) have one token each, the others are prompt chunks.

    All tensors are int32. positions [T]; slot_mapping [T]: the flat cache row (block * block size + offset) of each
    token's key and value; block_tables [S, most blocks]; seq_lens [S]: tokens of each sequence, this step's included.
    cu_seqlens_k [S + 1] has the running sums of seq_lens. cu_seqlens_q has those of the step's tokens, for the decodes
    [D + 1] and for the prompt chunks [S - D + 1] from 0 each, since attention computes them in two calls;
    max_seqlen_q and max_seqlen_k are the largest numbers of tokens in both (0: none); with padding, max_seqlen_k is the
    most that the block tables have room for.
    sample_rows [N], prompt_logprob_rows [M] and pooling_rows [P] are the rows that sample a token, have prompt
    logprobs, and return their hidden state.
    """

    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    cu_seqlens_k: Tensor
    cu_seqlens_q: tuple[Tensor, Tensor]
    max_seqlen_q: tuple[int, int]
    max_seqlen_k: tuple[int, int]
    sample_rows: Tensor
    prompt_logprob_rows: Tensor
    pooling_rows: Tensor
    num_decodes: int
    prompt_chunks: tuple[PromptChunk, ...]
    lora: LoraBatch | None

    @functools.cached_property
    def attention_rows(self) -> tuple[AttentionRows, ...]:
        """The decode rows, if there are any, and the prompt chunks, if there are any.

        Decode row i is sequence i, so the same slice has a part's rows and its sequences.
        """
        n = self.num_decodes
        return tuple(
            AttentionRows(
                rows=rows,
                block_tables=self.block_tables[rows],
                seq_lens=self.seq_lens[rows],
                cu_seqlens_q=self.cu_seqlens_q[half],
                cu_seqlens_k=self.cu_seqlens_k[sums],
                max_seqlen_q=self.max_seqlen_q[half],
                max_seqlen_k=self.max_seqlen_k[half],
            )
            for half, (rows, sums) in enumerate(((slice(n), slice(n + 1)), (slice(n, None), slice(n, None))))
            if self.max_seqlen_q[half]
        )


def forward_context(
    plan: StepPlan, block_size: int, staging: StagingBuffer, padding: Padding | None = None
) -> ForwardContext:
    """The tensors of `plan`, whose blocks have `block_size` tokens. They are valid once `staging` has been sent.

    With `padding`, the plan has been filled by it.
    """
    query_lens = np.array([len(s.tokens) for s in plan.sequences], np.int32)
    seq_lens = query_lens + np.array([s.start for s in plan.sequences], np.int32)
    first_rows = _running_sum(query_lens)
    num_decodes = int(np.argmax(query_lens > 1)) if query_lens.max() > 1 else len(query_lens)
    tables = _block_tables(plan, padding.table_width if padding else 1)
    sequence_of_row = np.repeat(np.arange(len(query_lens)), query_lens)
    positions = np.arange(first_rows[-1]) + np.repeat(seq_lens - first_rows[1:], query_lens)
    slot_mapping = tables[sequence_of_row, positions // block_size] * block_size + positions % block_size
    rows = list(zip(plan.sequences, first_rows.tolist(), strict=False))  # first_rows has the total as well
    block_tables = staging.put(tables, "int32")

    def halves(values: npt.NDArray[np.int32]) -> tuple[int, int]:
        return int(values[:num_decodes].max(initial=0)), int(values[num_decodes:].max(initial=0))

    return ForwardContext(
        positions=staging.put(positions, "int32"),
        slot_mapping=staging.put(slot_mapping, "int32"),
        block_tables=block_tables,
        seq_lens=staging.put(seq_lens, "int32"),
        cu_seqlens_k=staging.put(_running_sum(seq_lens), "int32"),
        cu_seqlens_q=(
            staging.put(first_rows[: num_decodes + 1], "int32"),
            staging.put(first_rows[num_decodes:] - num_decodes, "int32"),
        ),
        max_seqlen_q=halves(query_lens),
        # A recorded step keeps these numbers, so they must hold for every step that replays it.
        max_seqlen_k=(padding.table_width * block_size, 0) if padding else halves(seq_lens),
        sample_rows=staging.put([first + len(s.tokens) - 1 for s, first in rows if s.sample], "int32"),
        prompt_logprob_rows=staging.put(
            [first + j for s, first in rows for j in range(len(s.prompt_logprob_ids))], "int32"
        ),
        pooling_rows=staging.put([first + j for s, first in rows if s.pooling for j in range(len(s.tokens))], "int32"),
        num_decodes=num_decodes,
        prompt_chunks=tuple(
            PromptChunk(
                rows=slice(int(first_rows[i]), int(first_rows[i + 1])),
                start=plan.sequences[i].start,
                length=int(query_lens[i]),
                block_table=block_tables[i, : len(plan.sequences[i].block_table)],
            )
            for i in range(num_decodes, len(plan.sequences))
        ),
        lora=padded_lora_batch(plan.lora, padding.rows, staging) if padding else lora_batch(plan.lora, staging),
    )


def _running_sum(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """0, then the running sums of `lengths`."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)


def _block_tables(plan: StepPlan, least: int) -> npt.NDArray[np.int32]:
    """The block table of every sequence [S, most blocks, or `least` if that is more], padded with 0."""
    widest = max(least, *(len(s.block_table) for s in plan.sequences))
    tables = np.zeros((len(plan.sequences), widest), np.int32)
    for table, sequence in zip(tables, plan.sequences, strict=True):
        table[: len(sequence.block_table)] = sequence.block_table
    return tables
