"""The staging buffer: aligned arrays at addresses that do not change, and one copy on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.engine.staging import ALIGNMENT, StagingBuffer

CPU = torch.device("cpu")
DTYPES = ("bool", "int16", "int32", "int64", "float32", "float64")
STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), min_size=1, max_size=3)), max_size=8),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=100)
@given(steps=STEPS, seed=st.integers(0, 99))
def test_arrays_arrive_as_they_were_put(steps: list[list[tuple[str, list[int]]]], seed: int) -> None:
    generator, staging = np.random.default_rng(seed), StagingBuffer(1 << 16, CPU)
    for step in steps:
        staging.begin()
        arrays = [(generator.integers(0, 2, shape).astype(dtype), dtype) for dtype, shape in step]
        tensors = [staging.put(array, dtype) for array, dtype in arrays]
        staging.send()
        for tensor, (array, dtype) in zip(tensors, arrays, strict=True):
            assert tensor.dtype == getattr(torch, dtype)
            assert tensor.tolist() == array.tolist()
            assert tensor.numel() == 0 or (tensor.data_ptr() - tensors[0].data_ptr()) % ALIGNMENT == 0


def test_the_same_shapes_have_the_same_addresses() -> None:
    staging, addresses = StagingBuffer(1 << 16, CPU), []
    for value in range(3):
        staging.begin()
        tensors = [staging.put([value] * 5, "int32"), staging.put([[value, 1.5]], "float64")]
        addresses.append([tensor.data_ptr() for tensor in tensors])
        assert tensors[0].tolist() == [value] * 5
    assert addresses[0] == addresses[1] == addresses[2]


def test_a_step_that_is_too_large_is_an_error() -> None:
    staging = StagingBuffer(256, CPU)
    staging.begin()
    staging.put(range(64), "int32")
    with pytest.raises(ValueError, match="256 bytes"):
        staging.put([1], "int32")
