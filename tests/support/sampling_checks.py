"""Exact checks of sampling: random numbers in the middle of each token's interval, and transformers' processors.

For each number, a sampler must return exactly that token. So the set of candidates and every probability are
checked, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.sampling import sampling_batch as module
from motet.engine.sampling.sampler import SampledToken, Sampler
from motet.engine.schedule.priority import Precedence
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer

GREEDY = SamplingParams(max_tokens=99, temperature=0.0)
PLAIN = SamplingParams(max_tokens=99)
CPU = torch.device("cpu")
NARROW = 1e-4
"""Intervals narrower than this are within rounding errors of their neighbours."""


def row(
    params: SamplingParams, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), id: str = "x"
) -> Sequence:
    """A sequence that has generated `output`, and samples its next token."""
    request, precedence = AddRequest(id, prompt, params), Precedence(0, 0, 0)
    return Sequence(request, b"", precedence, 0.0, params.max_tokens, list(output), num_unread=1)


def random_logits(seed: int, rows: int, size: int, spread: float = 3.0) -> Tensor:
    """fp32 logits [rows, size]."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (rows, size)).astype(np.float32))


@contextmanager
def drawing(draw: float) -> Iterator[None]:
    """Make every row use this random number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "uniform", lambda seed, position: draw)
        yield


def sample(sampler: Sampler, logits: Tensor, rows: list[Sequence], masks: dict[int, Tensor]) -> list[SampledToken]:
    """The tokens that `sampler` picks for logits [N, V], which it changes."""
    staging = StagingBuffer(1 << 20, logits.device)
    staging.begin()
    batch = sampler.stage(rows, staging)
    staging.send()
    return sampler(logits, batch, masks).read()


def choose(logits: Tensor, sequence: Sequence, draw: float | None = None, mask: Tensor | None = None) -> int:
    """The token that a new sampler picks for one row of logits [V]."""
    masks = {} if mask is None else {0: mask}
    if draw is None:
        return sample(Sampler(len(logits), CPU), logits[None].clone(), [sequence], masks)[0].token
    with drawing(draw):
        return sample(Sampler(len(logits), CPU), logits[None].clone(), [sequence], masks)[0].token


def transformers_distribution(logits: Tensor, sequence: Sequence) -> Tensor:
    """The distribution that transformers samples from, with its order of processors: fp64 [V]."""
    p = sequence.request.params
    steps = LogitsProcessorList()
    if p.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    steps.append(TemperatureLogitsWarper(p.temperature))
    if p.top_k:
        steps.append(TopKLogitsWarper(p.top_k))
    if p.top_p < 1:
        steps.append(TopPLogitsWarper(p.top_p))
    if p.min_p:
        steps.append(MinPLogitsWarper(p.min_p))
    ids = torch.tensor([[*sequence.request.prompt, *sequence.output]])
    return torch.softmax(steps(ids, logits[None].clone())[0].double(), dim=-1)


def assert_samples_from(expected: Tensor, logits: Tensor, sequence: Sequence) -> None:
    """Assert that the sampler's distribution is `expected`: by token id if nothing is truncated, else best first."""
    p = sequence.request.params
    truncated = bool(p.top_k or p.top_p < 1 or p.min_p)
    order = torch.argsort(expected, descending=True) if truncated else torch.arange(len(expected))
    edge = 0.0
    for id in order.tolist():
        width = float(expected[id])
        if width > NARROW:
            for draw in (edge + width * 0.05, edge + width / 2, edge + width * 0.95):
                assert choose(logits, sequence, draw) == id
        edge += width
    kept = int((expected > 0).sum())
    assert float(expected[choose(logits, sequence, 1 - 2**-53)]) > 0, f"only {kept} tokens may come"


def clear_of_edges(warped: Tensor, p: SamplingParams) -> bool:
    """Whether no token is so close to a threshold that rounding decides."""
    best = torch.softmax(warped.double(), dim=-1).sort(descending=True).values
    if p.top_k:
        best = best[: p.top_k] / best[: p.top_k].sum()
    before = best.cumsum(0) - best
    return bool(((before - p.top_p).abs() > 1e-5).all() and ((best / best[0] - p.min_p).abs() > 1e-5)[1:].all())
