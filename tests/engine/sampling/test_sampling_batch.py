"""What a graph needs of sampling: fixed shapes, no reads by the host, and as many operations whatever the rows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.recording import record
from support.sampling_checks import CPU, GREEDY, PLAIN, random_logits, row, sample
from torch.utils._python_dispatch import TorchDispatchMode

from motet.core.sampling_params import SamplingParams
from motet.engine.sampling.sampler import Sampler
from motet.engine.sampling.sampling_batch import is_capturable, stage_batch
from motet.engine.sampling.token_table import TokenTable
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer

EVERYTHING = SamplingParams(
    max_tokens=99, top_p=0.9, repetition_penalty=1.2, logit_bias={3: 1.0}, min_tokens=50, eos_token_ids=(2,), logprobs=5
)


class Operations(TorchDispatchMode):
    """Counts the operations that are launches on a GPU. Reads by the host raise AssertionError."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace == "aten", func
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        allocates = func in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default)
        self.launches += not (is_view or allocates)
        return func(*args, **(kwargs or {}))


def rows_of(params: list[SamplingParams]) -> list[Sequence]:
    """A sequence for each of `params`."""
    return [row(msgspec.structs.replace(p, seed=i), id=str(i)) for i, p in enumerate(params)]


@pytest.mark.parametrize("kinds", [[GREEDY], [PLAIN], [GREEDY, EVERYTHING]], ids=["greedy", "drawn", "everything"])
def test_the_number_of_launches_does_not_depend_on_the_rows(kinds: list[SamplingParams]) -> None:
    launches: list[int] = []
    for count in (2, 32):
        sampler, staging = Sampler(60, CPU), StagingBuffer(1 << 16, CPU)
        rows = rows_of([kinds[i % len(kinds)] for i in range(count)])
        for _ in range(2):  # the second step, since the first one fills the table
            staging.begin()
            logits = random_logits(1, count, 60)
            with Operations() as operations:
                sampled = sampler(logits, sampler.stage(rows, staging), {})
            for sequence, result in zip(rows, sampled.read(), strict=True):
                sequence.output.append(result.token)
        launches.append(operations.launches)
    assert launches[0] == launches[1] <= (10 if len(kinds) == 1 else 40)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kinds=st.lists(
        st.sampled_from([GREEDY, PLAIN, SamplingParams(max_tokens=9, top_k=5, top_p=0.9, temperature=0.6)]), max_size=5
    ),
    padding=st.integers(0, 3),
)
def test_padded_rows_sample_what_plain_ones_sample(seed: int, kinds: list[SamplingParams], padding: int) -> None:
    rows, size = rows_of(kinds), len(kinds) + padding
    assume(rows)
    sampler, staging = Sampler(30, CPU), StagingBuffer(1 << 16, CPU)
    recorded = torch.zeros(size, 30)
    staging.begin()
    sampler.record(recorded, staging, record)
    staging.begin()
    batch = sampler.stage(rows, staging, size)
    assert all(map(is_capturable, batch.rows))
    assert bool(batch.recorded_rows) == any(kind.temperature > 0 for kind in kinds)
    recorded.copy_(random_logits(seed, size, 30))
    expected = sample(Sampler(30, CPU), recorded[: len(rows)].clone(), rows, {})
    assert sampler(recorded[: len(rows)], batch, {}).read() == expected


def test_padded_batches_have_the_same_addresses_and_operations() -> None:
    """So a captured graph reads the parameters of the step that replays it."""
    sampler, staging = Sampler(30, CPU), StagingBuffer(1 << 16, CPU)
    seen = []
    for kinds in ([], [GREEDY] * 4, [PLAIN] * 4, [PLAIN, GREEDY]):
        staging.begin()
        batch = stage_batch(rows_of(kinds), staging, TokenTable(30, CPU), 4)
        draw = batch.draw
        assert draw is not None
        with Operations() as operations:
            sampler.sample_ids(random_logits(1, 4, 30), batch)
        tensors = (draw.temperatures, draw.top_k, draw.cuts, draw.draws)
        assert draw.rows is None
        seen.append(([t.data_ptr() for t in tensors], [t.shape for t in tensors], operations.launches))
    assert all(entry == seen[0] for entry in seen)


@pytest.mark.parametrize(
    "change",
    [{"typical_p": 0.5}, {"logit_bias": {1: 1.0}}, {"presence_penalty": 0.1}, {"logprobs": 0}, {"min_tokens": 1}],
    ids=str,
)
def test_what_sample_ids_leaves_out_is_not_capturable(change: dict[str, Any]) -> None:
    sampler, staging = Sampler(30, CPU), StagingBuffer(1 << 16, CPU)
    staging.begin()
    batch = sampler.stage(rows_of([PLAIN, msgspec.structs.replace(PLAIN, **change)]), staging)
    assert not all(map(is_capturable, batch.rows))
