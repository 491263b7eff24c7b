"""Locally typical sampling keeps exactly what transformers' own warper keeps."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.draw_reference import draw
from transformers import TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from motet.core.sampling_params import SamplingParams

ROWS = st.integers(0, 10_000).map(lambda seed: torch.randn(1, 97, generator=torch.Generator().manual_seed(seed)) * 3)
NOBODY = torch.zeros(1, 0, dtype=torch.long)


@settings(deadline=None)
@given(ROWS, st.floats(0.05, 0.99))
def test_the_same_tokens_are_kept(logits: torch.Tensor, mass: float) -> None:
    """A draw in the middle of each kept token's share comes out as that token, so exactly those are kept."""
    kept = torch.softmax(TypicalLogitsWarper(mass)(NOBODY, logits)[0].double(), -1)
    ids = kept.nonzero()[:, 0]
    draws = (kept.cumsum(0) - kept / 2)[ids].tolist()
    rows = torch.softmax(logits, -1).repeat(len(draws), 1)
    assert draw(rows, [SamplingParams(max_tokens=1, typical_p=mass)] * len(draws), draws) == ids.tolist()


@settings(deadline=None)
@given(ROWS, st.floats(0.1, 0.95), st.integers(1, 97), st.floats(0.2, 1.0), st.floats(0, 0.999))
def test_it_comes_after_top_k_and_top_p(logits: torch.Tensor, mass: float, k: int, p: float, number: float) -> None:
    params = SamplingParams(max_tokens=1, top_k=k, top_p=p, typical_p=mass)
    (chosen,) = draw(torch.softmax(logits, -1), [params], [number])
    warped = TopPLogitsWarper(p)(NOBODY, TopKLogitsWarper(k)(NOBODY, logits))
    kept = TypicalLogitsWarper(mass)(NOBODY, warped)[0]
    assert torch.isfinite(kept[chosen])
