"""Truncates distributions by top_k, top_p, min_p and typical_p, and draws a token per row. N is rows, V the vocabulary.

As in transformers, top_p applies to the tokens that top_k leaves, and typical_p to those that the others leave. Only
typical_p may remove the most likely id. One kernel does it for all rows: in Numba on the CPU
(engine/kernels/cpu_sampling.py), in Triton on CUDA (engine/kernels/sampling_triton.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.engine.kernels import cpu_sampling


@dataclass(frozen=True)
class DrawParameters:
    """How each of N rows draws its token.

    temperatures [N] fp32, above 0; top_k [N] int32 (0: off); cuts [N, 3] fp64: top_p, min_p and typical_p; draws [N]
    fp64 in [0, 1), or negative for a greedy row. `rows` [N] int64 are the rows of logits; None: all of them.
    """

    rows: Tensor | None
    temperatures: Tensor
    top_k: Tensor
    cuts: Tensor
    draws: Tensor
    has_typical: bool
    has_greedy: bool


def draw_tokens(probabilities: Tensor, parameters: DrawParameters, ids: Tensor) -> None:
    """ids[N] (int32): the id of each row of `probabilities` [N, V] at which its CDF passes its draw.

    `probabilities` is fp32, contiguous and overwritten. The CDF adds up the ids in the order of their probability
    (equal ones by id) where top_k, top_p or min_p is set, else by id. The ids of greedy rows stay as they are.
    """
    p = parameters
    if probabilities.device.type == "cpu":
        arrays = (t.numpy() for t in (probabilities, p.top_k, p.cuts, p.draws, ids))
        cpu_sampling.draw_rows(*arrays)
        return
    from motet.engine.kernels import sampling_triton

    distances = torch.empty_like(probabilities) if p.has_typical else None
    sampling_triton.draw_rows(probabilities, distances, p.top_k, p.cuts, p.draws, ids)
