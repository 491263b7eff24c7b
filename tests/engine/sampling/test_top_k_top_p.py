"""The kernel that draws tokens against sorting, and at what a sort would make costly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.draw_reference import draw, draw_by_sorting

from motet.core.sampling_params import SamplingParams

# Shares of a mass that is a sum of powers of two; rounder ones (0.9 of 5/8) would be such sums themselves, so that the
# last bit decided.
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    top_k=st.sampled_from((0, 1, 3, 40, 1000)),
    top_p=st.sampled_from((1.0, 0.9991, 0.9137, 0.3071, 0.0)),
    min_p=st.sampled_from((0.0, 0.01, 0.5, 1.0)),
    typical_p=st.sampled_from((1.0, 0.8713, 0.2137)),
)
DRAWS = st.floats(0, 1, exclude_max=True)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from((0.0, 0.01, 1.0, 6.0)),
    masked=st.booleans(),
    rows=st.lists(st.tuples(PARAMS, DRAWS), min_size=1, max_size=5),
)
def test_the_kernel_draws_what_sorting_draws(
    seed: int, spread: float, masked: bool, rows: list[tuple[SamplingParams, float]]
) -> None:
    """Also where probabilities are equal (spread 0) or 0. Powers of two make every sum exact, so that none is close."""
    rng = np.random.default_rng(seed)
    exponents = rng.normal(0, spread, (len(rows), 64)).round().clip(-20, 20)
    weights = torch.from_numpy(np.exp2(exponents).astype(np.float32))
    if masked:
        weights *= torch.from_numpy(rng.random(weights.shape) < 0.5)
        weights[:, 7] = 1.0
    params, draws = [p for p, _ in rows], [number for _, number in rows]
    # Not normalised, as division would round; a power of two keeps top_p's meaning.
    weights /= float(2.0 ** np.ceil(np.log2(float(weights.sum(-1).max()))))
    expected = draw_by_sorting(weights.clone(), params, draws)
    assert draw(weights, params, draws) == expected


@pytest.mark.parametrize("cut", [{}, {"top_k": 20_000}, {"top_p": 0.999999}, {"typical_p": 0.5}], ids=str)
def test_a_flat_distribution_of_a_large_vocabulary(cut: dict[str, float]) -> None:
    """Every token is equally likely: nothing separates those that are kept but their ids."""
    size = 32_768
    flat = torch.full((3, size), 1 / size)
    params = [SamplingParams(max_tokens=1, **cut)] * 3  # type: ignore[arg-type]
    kept = {"top_k": 20_000, "top_p": size}.get(next(iter(cut), ""), size)
    first, middle, last = draw(flat, params, [0.0, 0.5, 1 - 2**-53])
    assert (first, middle) == (0, kept // 2)
    assert last >= kept - 2


def test_a_row_of_nan_yields_some_id_and_leaves_the_others_alone() -> None:
    rows = torch.full((2, 16), 1 / 16)
    rows[0] = torch.nan
    for params in (
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=1, top_k=3, top_p=0.5, min_p=0.1, typical_p=0.5),
    ):
        broken, sound = draw(rows.clone(), [params, SamplingParams(max_tokens=1)], [0.5, 0.5])
        assert 0 <= broken < 16
        assert sound == 8
