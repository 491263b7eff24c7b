"""The draw by sorting, in PyTorch: the reference of the kernels, which do not sort."""

from __future__ import annotations

import torch
from torch import Tensor

from motet.core.sampling_params import SamplingParams
from motet.engine.sampling.sampling_batch import draw_parameters
from motet.engine.sampling.top_k_top_p import draw_tokens
from motet.engine.staging import StagingBuffer


def draw(probabilities: Tensor, params: list[SamplingParams], draws: list[float]) -> list[int]:
    """The ids that the kernel draws for probabilities [N, V], which it overwrites."""
    staging = StagingBuffer(1 << 20, probabilities.device)
    staging.begin()
    parameters = draw_parameters(None, params, draws, staging)
    staging.send()
    ids = torch.empty(len(params), dtype=torch.int32, device=probabilities.device)
    draw_tokens(probabilities, parameters, ids)
    return ids.tolist()


def draw_by_sorting(probabilities: Tensor, params: list[SamplingParams], draws: list[float]) -> list[int]:
    """The same ids by sorting."""
    device = probabilities.device
    top_k = torch.tensor([p.top_k for p in params], device=device)
    cuts = torch.tensor([(p.top_p, p.min_p, p.typical_p) for p in params], dtype=torch.float64, device=device)
    return _draw_rows(probabilities, top_k, cuts, torch.tensor(draws, dtype=torch.float64, device=device)).tolist()


def _draw_rows(probabilities: Tensor, top_k: Tensor, cuts: Tensor, draws: Tensor) -> Tensor:
    """The ids [N] that `draw_rows` of cpu_sampling.py draws for the same arguments, as tensors."""
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
