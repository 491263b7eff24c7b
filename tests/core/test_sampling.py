"""Seeds and draws: reproducible, spread evenly, and tied to seed and position alone."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.sampling_params import SamplingParams, choice_seed, splitmix64, uniform

SEEDS = st.integers(-(2**70), 2**70)


def test_splitmix_reference_values() -> None:
    """The first outputs of the published generator from seed 1234567, whose state grows by the golden ratio."""
    golden = 0x9E3779B97F4A7C15
    outputs = [splitmix64((1234567 + i * golden) & (2**64 - 1)) for i in range(5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(SEEDS, st.integers(0, 2**31))
def test_draws_are_in_the_unit_interval_and_repeatable(seed: int, position: int) -> None:
    draw = uniform(seed, position)
    assert 0 <= draw < 1
    assert draw == uniform(seed, position)


@given(SEEDS)
def test_seeds_are_taken_modulo_two_to_64(seed: int) -> None:
    assert uniform(seed, 3) == uniform(seed + 2**64, 3)
    assert choice_seed(seed, 0) == seed % 2**64
    assert 0 <= choice_seed(seed, 5) < 2**63


def chi_square(draws: list[float], bins: int) -> float:
    """How far a histogram of `draws` is from even, in standard deviations of the chi-square statistic."""
    counts = [0] * bins
    for draw in draws:
        counts[int(draw * bins)] += 1
    expected = len(draws) / bins
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize(
    "draws",
    [
        [uniform(7, position) for position in range(20_000)],
        [uniform(seed, 0) for seed in range(20_000)],
        [uniform(choice_seed(11, choice), 2) for choice in range(20_000)],
        [uniform(n, n) for n in range(20_000)],
    ],
    ids=["positions", "seeds", "choices", "diagonal"],
)
def test_draws_are_even_and_uncorrelated(draws: list[float]) -> None:
    assert abs(chi_square(draws, 64)) < 4
    products = [(a - 0.5) * (b - 0.5) for a, b in pairwise(draws)]
    assert abs(sum(products) / len(products)) < 4 / 12 / math.sqrt(len(products))


def test_choices_of_one_request_differ() -> None:
    assert len({choice_seed(5, choice) for choice in range(1000)}) == 1000


def test_ending_ids() -> None:
    params = SamplingParams(max_tokens=1, eos_token_ids=(1, 2), stop_token_ids=(2, 3))
    assert params.ending_ids() == {1, 2, 3}
    assert msgspec.structs.replace(params, ignore_eos=True).ending_ids() == {2, 3}


@given(
    st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 9),
        temperature=st.floats(0, 2),
        logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100), max_size=3),
        seed=st.integers(0, 2**63),
        stop_token_ids=st.lists(st.integers(0, 9), max_size=3).map(tuple),
        logprobs=st.none() | st.integers(0, 20),
    )
)
def test_params_survive_the_wire(params: SamplingParams) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
