"""The sampler against transformers' processors, the definitions, and itself alone."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.sampling_checks import (
    CPU,
    GREEDY,
    PLAIN,
    assert_samples_from,
    choose,
    clear_of_edges,
    random_logits,
    row,
    sample,
    transformers_distribution,
)

from motet.core.sampling_params import SamplingParams
from motet.engine.sampling.sampler import SampledToken, Sampler


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from((2, 7, 40)),
    temperature=st.sampled_from((0.3, 1.0, 1.7)),
    top_k=st.sampled_from((0, 1, 3, 10, 1000)),
    top_p=st.sampled_from((1.0, 0.95, 0.5, 0.1)),
    min_p=st.sampled_from((0.0, 0.02, 0.3, 1.0)),
)
def test_truncation_is_transformers(  # one axis a parameter
    seed: int, size: int, temperature: float, top_k: int, **cuts: float
) -> None:
    params = SamplingParams(max_tokens=9, temperature=temperature, top_k=top_k, **cuts)
    logits = random_logits(seed, 1, size)[0]
    assume(clear_of_edges(logits / temperature, params))
    sequence = row(params)
    assert_samples_from(transformers_distribution(logits, sequence), logits, sequence)


@pytest.mark.parametrize(
    "cut",
    [{"top_k": 5}, {"top_k": 2000}, {"top_p": 0.6}, {"top_p": 0.999}, {"min_p": 0.05}, {"top_k": 1500, "top_p": 0.98}],
    ids=str,
)
def test_truncation_of_a_large_vocabulary(cut: dict[str, float]) -> None:
    """Also where what is kept is wider than the first look at the candidates."""
    logits = random_logits(3, 1, 10_000, spread=1.0)[0]
    sequence = row(SamplingParams(max_tokens=9, **cut))  # type: ignore[arg-type]
    expected = transformers_distribution(logits, sequence)
    order = torch.argsort(expected, descending=True)
    edges = torch.cat([torch.zeros(1, dtype=torch.double), expected[order].cumsum(0)])
    kept = int((expected > 0).sum())
    for index in (0, 1, kept // 2, kept - 2, kept - 1):
        assert choose(logits, sequence, float(edges[index] + edges[index + 1]) / 2) == int(order[index])
    assert choose(logits, sequence, 1 - 2**-53) == int(order[kept - 1])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    penalty=st.sampled_from((0.7, 1.3, 2.0)),
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    output=st.lists(st.integers(0, 11), max_size=6),
)
def test_repetition_penalty_is_transformers(seed: int, penalty: float, prompt: list[int], output: list[int]) -> None:
    logits = random_logits(seed, 1, 12)[0]
    params = SamplingParams(max_tokens=9, repetition_penalty=penalty)
    sequence = row(params, tuple(prompt), tuple(output))
    assert_samples_from(transformers_distribution(logits, sequence), logits, sequence)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    output=st.lists(st.integers(0, 9), max_size=8),
    bias=st.dictionaries(st.integers(0, 9), st.floats(-20, 20), max_size=4),
)
def test_penalties_and_bias_are_openais(
    seed: int, presence: float, frequency: float, output: list[int], bias: dict[int, float]
) -> None:
    """logit - count * frequency - (count > 0) * presence, over the output alone; the bias is added."""
    logits = random_logits(seed, 1, 10)[0]
    params = SamplingParams(max_tokens=9, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    expected = logits.double()
    for id in range(10):
        count = output.count(id)
        expected[id] -= count * frequency + (count > 0) * presence
        expected[id] += bias.get(id, 0.0)
    sequence = row(params, prompt=(0, 1, 2), output=tuple(output))
    assert_samples_from(torch.softmax(expected, dim=-1), logits, sequence)


def test_history_kept_over_steps_equals_history_rebuilt() -> None:
    params = SamplingParams(max_tokens=99, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.4, seed=9)
    kept, output = Sampler(30, CPU), []
    for step in range(40):
        logits = random_logits(step, 1, 30, spread=1.0)
        sequence = row(params, prompt=(1, 2), output=tuple(output))
        token = sample(kept, logits.clone(), [sequence], {})[0].token
        assert token == choose(logits[0], sequence), "a sampler that has seen it all, and one that has seen nothing"
        output.append(token)
    assert len(set(output)) > 5


def test_forgotten_histories_are_gone() -> None:
    """An id that comes again starts from nothing."""
    sampler = Sampler(4, CPU)
    logits = torch.tensor([[1.0, 0.9, 0.0, 0.0]])
    params = msgspec.structs.replace(GREEDY, presence_penalty=2.0)
    assert sample(sampler, logits.clone(), [row(params, prompt=(3,))], {})[0].token == 0
    assert sample(sampler, logits.clone(), [row(params, prompt=(3,), output=(0,))], {})[0].token == 1
    sampler.forget("x")
    assert sample(sampler, logits.clone(), [row(params, prompt=(3,))], {})[0].token == 0
    sampler.forget("never seen")


def test_top_k_top_ps_have_the_right_distribution() -> None:
    """Chi-square over 6000 seeds, for each way of truncating."""
    logits = random_logits(5, 1, 16, spread=1.5)[0]
    count = 6000
    for cut in ({}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}):
        params = [SamplingParams(max_tokens=9, seed=seed, **cut) for seed in range(count)]  # type: ignore[arg-type]
        rows = [row(p, id=str(i)) for i, p in enumerate(params)]
        choices = sample(Sampler(16, CPU), logits.repeat(count, 1), rows, {})
        expected = transformers_distribution(logits, rows[0]) * count
        counts = torch.bincount(torch.tensor([c.token for c in choices]), minlength=16)
        kept = expected > 0
        assert int(counts[~kept].sum()) == 0, "a token outside the kept set came"
        statistic = float(((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum())
        freedom = int(kept.sum()) - 1
        assert statistic < freedom + 4 * math.sqrt(2 * freedom), f"{cut}: {statistic} with {freedom} degrees of freedom"


ROW_PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    temperature=st.sampled_from((0.0, 1e-4, 0.7, 2.0)),
    top_p=st.sampled_from((1.0, 0.9, 0.4)),
    top_k=st.sampled_from((0, 1, 5)),
    min_p=st.sampled_from((0.0, 0.1)),
    repetition_penalty=st.sampled_from((1.0, 1.4)),
    presence_penalty=st.sampled_from((0.0, 1.0)),
    frequency_penalty=st.sampled_from((0.0, -0.5)),
    logit_bias=st.dictionaries(st.integers(0, 32), st.floats(-5, 5), max_size=2),
    seed=st.integers(0, 2**63),
    min_tokens=st.integers(0, 3),
    eos_token_ids=st.sampled_from(((), (3,), (3, 5))),
    logprobs=st.sampled_from((None, 0, 1, 20)),
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    params=st.lists(ROW_PARAMS, min_size=1, max_size=6),
    coarse=st.booleans(),
    masked=st.sets(st.integers(0, 5)),
)
def test_a_row_is_sampled_alike_alone_and_in_company(
    seed: int, params: list[SamplingParams], coarse: bool, masked: set[int]
) -> None:
    """Token, logprob and alternatives have the same bits; with coarse logits also where values tie."""
    logits = random_logits(seed, len(params), 33)
    if coarse:
        logits = logits.round()
    rng = np.random.default_rng(seed)
    output = tuple(int(t) for t in rng.integers(0, 33, int(rng.integers(0, 5))))
    rows = [row(p, (1, 2), output, id=str(i)) for i, p in enumerate(params)]
    masks = {j: torch.from_numpy(rng.random(33) < 0.6) for j in masked if j < len(rows)}
    for mask in masks.values():
        mask[:8] = True
    together = sample(Sampler(33, CPU), logits.clone(), rows, masks)
    alone = [
        sample(Sampler(33, CPU), logits[j : j + 1].clone(), [rows[j]], {0: masks[j]} if j in masks else {})[0]
        for j in range(len(rows))
    ]
    assert together == alone


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), top=st.integers(0, 20))
def test_logprobs_are_the_models(seed: int, top: int) -> None:
    """Before penalties, bias, masks and temperature; best first; the chosen token's own is always there."""
    logits = random_logits(seed, 2, 25)
    params = SamplingParams(
        max_tokens=9, temperature=0.5, repetition_penalty=1.5, logit_bias={3: 9.0}, logprobs=top, seed=seed
    )
    masks = {0: torch.arange(25) > 2}
    reference = torch.log_softmax(logits.double(), dim=-1)
    reported, silent = sample(Sampler(25, CPU), logits, [row(params, id="a"), row(PLAIN, id="b")], masks)
    assert reported.logprob == pytest.approx(float(reference[0, reported.token]), abs=1e-5)
    best = reference[0].topk(top)
    assert [id for id, _ in reported.top] == best.indices.tolist()
    assert [value for _, value in reported.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert (silent.logprob, silent.top) == (None, ())


def test_greedy_next_to_sampled_rows() -> None:
    logits = random_logits(1, 3, 50)
    rows = [row(PLAIN, id="a"), row(GREEDY, id="b"), row(PLAIN, id="c")]
    assert sample(Sampler(50, CPU), logits.clone(), rows, {})[1] == SampledToken(int(logits[1].argmax()))


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30, 1e-44, 1e-60, 5e-324])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = random_logits(2, 1, 50)[0] * 100
    params = SamplingParams(max_tokens=9, temperature=temperature)
    for draw in (0.0, 0.5, 1 - 2**-53):
        assert choose(logits, row(params), draw) == int(logits.argmax())


@pytest.mark.parametrize("cut", [{"top_p": 0.0}, {"top_p": 1e-30}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_the_likeliest_token_is_always_kept(cut: dict[str, float]) -> None:
    logits = random_logits(2, 1, 50)[0]
    params = SamplingParams(max_tokens=9, **cut)  # type: ignore[arg-type]
    for draw in (0.0, 0.5, 1 - 2**-53):
        assert choose(logits, row(params), draw) == int(logits.argmax())


def test_seed_and_position_alone_decide_the_draw() -> None:
    logits = torch.zeros(1000)
    seeded = [msgspec.structs.replace(PLAIN, seed=seed) for seed in (1, 1, 2)]
    tokens = [
        [choose(logits, row(p, prompt, (5,) * n)) for n in range(20)]
        for p, prompt in zip(seeded, ((0,), (1, 2), (0,)), strict=True)
    ]
    assert tokens[0] == tokens[1], "whatever the prompt"
    assert tokens[0] != tokens[2]
    assert len(set(tokens[0])) > 15, "each position draws anew"


def test_no_end_before_min_tokens() -> None:
    params = SamplingParams(max_tokens=9, temperature=0.0, min_tokens=2, eos_token_ids=(0,), stop_token_ids=(1,))
    logits = torch.tensor([9.0, 8.0, 7.0, 6.0])
    assert [choose(logits, row(params, output=(3,) * n)) for n in range(4)] == [2, 2, 0, 0]
    ignoring = msgspec.structs.replace(params, ignore_eos=True)
    assert choose(logits, row(ignoring)) == 0, "an id that does not end the text may come"


def test_masked_tokens_never_come() -> None:
    logits = random_logits(4, 1, 20)[0]
    mask = torch.zeros(20, dtype=torch.bool)
    mask[[4, 11]] = True
    for params in (GREEDY, PLAIN, SamplingParams(max_tokens=9, top_k=5), SamplingParams(max_tokens=9, top_p=0.9)):
        assert {choose(logits, row(params), draw, mask) for draw in (0.0, 0.3, 0.6, 1 - 2**-53)} <= {4, 11}


def test_probability_zero_never_comes() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    for draw, token in ((0.0, 1), (0.49, 1), (0.5, 3), (1 - 2**-53, 3)):
        assert choose(logits, row(PLAIN), draw) == token
