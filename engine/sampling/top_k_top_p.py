"""Truncates distributions by top_k, top_p, min_p and typical_p, and draws a token per row. N is rows, V the vocabulary.

As in transformers, top_p applies to the tokens that top_k leaves, and typical_p to those that the others leave. Only
typical_p may remove the most likely id. On the CPU a Numba kernel does it (engine/kernels/cpu_sampling.py); elsewhere a
few batched PyTorch operations, which are also the reference of the kernel's tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from motet.core.sampling_params import SamplingParams
from motet.engine.kernels.cpu_sampling import draw_rows


def draw_tokens(probabilities: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """The id of each row of `probabilities` [N, V] (fp32, contiguous, overwritten) at which its CDF passes its draw.

    The CDF adds up the ids in the order of their probability (equal ones by id) where top_k, top_p or min_p is
    set, else by id.
    """
    top_k = np.array([p.top_k for p in params], np.int64)
    cuts = np.array([(p.top_p, p.min_p, p.typical_p) for p in params], np.float64)
    if probabilities.device.type == "cpu":
        tokens = np.empty(len(params), np.int64)
        draw_rows(probabilities.numpy(), top_k, cuts, np.array(draws, np.float64), tokens)
        return tokens.tolist()
    device = probabilities.device
    chosen = draw_rows_torch(
        probabilities,
        torch.from_numpy(top_k).to(device),
        torch.from_numpy(cuts).to(device),
        torch.tensor(draws, dtype=torch.float64, device=device),
    )
    return chosen.tolist()


def draw_rows_torch(probabilities: Tensor, top_k: Tensor, cuts: Tensor, draws: Tensor) -> Tensor:
    """`draw_rows` in PyTorch: the same arguments as tensors, and the chosen ids [N]."""
    top_p, min_p, typical_p = cuts.unbind(1)
    truncated = (top_k > 0) | (top_p < 1) | (min_p > 0)
    ids = torch.arange(probabilities.shape[1], device=probabilities.device).expand_as(probabilities)
    weights = probabilities
    if bool(truncated.any()):
        best, order = probabilities.sort(dim=-1, descending=True, stable=True)
        weights = torch.where(truncated[:, None], _truncate(best, top_k, top_p, min_p), probabilities)
        ids = torch.where(truncated[:, None], order, ids)
    if bool((typical_p < 1).any()):
        weights = torch.where((typical_p < 1)[:, None], _typical(weights, typical_p), weights)
    running = weights.double().cumsum(-1)
    place = torch.searchsorted(running, (draws * running[:, -1])[:, None], right=True)
    last = (weights > 0).long().mul(torch.arange(1, weights.shape[1] + 1, device=weights.device)).amax(-1) - 1
    return ids.gather(1, torch.minimum(place[:, 0], last.clamp(min=0))[:, None])[:, 0]


def _truncate(best: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """`best` [N, V], in descending order, with 0 where top_k [N], top_p of the rest or min_p removes an id."""
    rank = torch.arange(best.shape[1], device=best.device)
    mass = best.double()
    in_top_k = (top_k[:, None] == 0) | (rank < top_k[:, None])
    mass = mass * in_top_k
    left = torch.where(top_k > 0, mass.sum(-1), 1.0)
    before = mass.cumsum(-1) - mass
    keep = (
        in_top_k & ((before < (top_p * left)[:, None]) | (top_p >= 1)[:, None]) & (best >= min_p[:, None] * best[:, :1])
    )
    keep[:, 0] = True
    return best * keep


def _typical(weights: Tensor, mass: Tensor) -> Tensor:
    """`weights` [N, V], 0 where the information is far from the mean; the rest has a share >= `mass`.

    Meister et al., "Locally typical sampling", TACL 2023.
    """
    p = weights.double() / weights.double().sum(-1, keepdim=True)
    information = -p.log()
    entropy = torch.nansum(p * information, -1, keepdim=True)
    # float32, as in the kernel, whose buckets are made of its bits.
    distance = (information - entropy).abs().float()
    nearest, order = distance.sort(dim=-1, stable=True)
    reached = p.gather(1, order).cumsum(-1) < mass[:, None]
    last = reached.sum(-1).clamp(max=weights.shape[1] - 1)
    return weights * (distance <= nearest.gather(1, last[:, None]))
