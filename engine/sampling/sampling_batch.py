"""Stages the rows of a step that sample a token: their parameters as arrays, so that the device handles all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from motet.core.sampling_params import SamplingParams, uniform
from motet.engine.sampling.token_table import AdjustedRows, TokenTable, is_penalised
from motet.engine.sampling.top_k_top_p import DrawParameters
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer

TINIEST = float(np.finfo(np.float32).tiny)
"""The lowest temperature: in fp32, lower ones could be 0."""

MOST_TOP_K = 2**31 - 1

GREEDY, GREEDY_DRAW = SamplingParams(max_tokens=1), -1.0
"""The parameters and the draw of a row that takes the most likely token."""


@dataclass(frozen=True)
class ReportedRows:
    """The L rows with logprobs: rows [L] int64, and on the host each with the number of its alternatives."""

    rows: Tensor
    top_counts: list[tuple[int, int]]

    @property
    def most(self) -> int:
        """The largest number of alternatives."""
        return max(count for _, count in self.top_counts)


def is_capturable(row: Sequence) -> bool:
    """Whether `Sampler.sample_ids`, which a graph can capture, is all that a row needs.

    That is a draw without typical_p, or the most likely token.
    """
    p = row.request.params
    adjusted = p.logit_bias or is_penalised(p) or row.sampled_index < p.min_tokens or row.request.grammar is not None
    return not adjusted and p.logprobs is None and p.typical_p >= 1


@dataclass(frozen=True)
class SamplingBatch:
    """The rows of a step that sample a token, with what the device needs to know about them. None: no row needs it."""

    rows: list[Sequence]
    draw: DrawParameters | None
    adjusted: AdjustedRows | None
    reported: ReportedRows | None
    below_min_tokens: list[int]
    recorded_rows: int = 0
    """The number of rows of the recorded graph that samples this batch; 0: none."""


def stage_batch(rows: list[Sequence], staging: StagingBuffer, table: TokenTable, size: int | None) -> SamplingBatch:
    """Put what the device needs to know about `rows`. With `size`, all of them draw, with padding up to this many."""
    drawing: list[int] = []
    adjusted: list[int] = []
    reported: list[tuple[int, int]] = []
    below_min_tokens: list[int] = []
    for j, row in enumerate(rows):
        p = row.request.params
        if p.temperature > 0:
            drawing.append(j)
        if p.logit_bias or is_penalised(p):
            adjusted.append(j)
        if p.logprobs is not None:
            reported.append((j, p.logprobs))
        if p.min_tokens and row.sampled_index < p.min_tokens:
            below_min_tokens.append(j)
    return SamplingBatch(
        rows=rows,
        draw=_stage_draw(rows, drawing, staging, size),
        adjusted=_stage_adjusted(rows, adjusted, staging, table) if adjusted else None,
        reported=ReportedRows(staging.put([j for j, _ in reported], "int64"), reported) if reported else None,
        below_min_tokens=below_min_tokens,
    )


def draw_parameters(
    rows: list[int] | None, params: list[SamplingParams], draws: list[float], staging: StagingBuffer
) -> DrawParameters:
    """Put the parameters and the draw of each row; `rows` are the rows of logits, None: all."""
    return DrawParameters(
        rows=None if rows is None else staging.put(rows, "int64"),
        temperatures=staging.put([max(p.temperature, TINIEST) for p in params], "float32"),
        top_k=staging.put([min(p.top_k, MOST_TOP_K) for p in params], "int32"),
        cuts=staging.put([(p.top_p, p.min_p, p.typical_p) for p in params], "float64"),
        draws=staging.put(draws, "float64"),
        has_typical=any(p.typical_p < 1 for p in params),
        has_greedy=rows is not None or GREEDY_DRAW in draws,
    )


def _stage_draw(
    rows: list[Sequence], drawing: list[int], staging: StagingBuffer, size: int | None
) -> DrawParameters | None:
    """Put the draws of the rows `drawing`; with `size`, of all rows, and of padding up to this many."""
    if size is None and not drawing:
        return None
    params = [rows[j].request.params for j in drawing]
    draws = [uniform(p.seed, rows[j].sampled_index) for j, p in zip(drawing, params, strict=True)]
    if size is None:
        return draw_parameters(drawing if len(drawing) < len(rows) else None, params, draws, staging)
    padded_params, padded_draws = [GREEDY] * size, [GREEDY_DRAW] * size
    for j, p, number in zip(drawing, params, draws, strict=True):
        padded_params[j], padded_draws[j] = p, number
    # A graph computes the most likely ids, whether or not the rows that it is captured with need them.
    return replace(draw_parameters(None, padded_params, padded_draws, staging), has_greedy=True)


def _stage_adjusted(
    rows: list[Sequence], adjusted: list[int], staging: StagingBuffer, table: TokenTable
) -> AdjustedRows:
    adjusted = sorted(adjusted, key=lambda j: not is_penalised(rows[j].request.params))
    params = [rows[j].request.params for j in adjusted]
    penalties = [(p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params]
    return AdjustedRows(
        rows=staging.put(adjusted, "int32"),
        places=staging.put(table.places([rows[j] for j in adjusted]), "int32"),
        penalties=staging.put(penalties, "float32"),
        num_penalised=sum(map(is_penalised, params)),
    )
