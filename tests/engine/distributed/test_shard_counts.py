"""The numbers of ranks that can split a model."""

from __future__ import annotations

import pytest

from motet.engine.distributed.shard_counts import SplitSizes

SMOLLM2_135M = SplitSizes(heads=9, kv_heads=3, intermediate_size=1536)
QWEN2_5_3B = SplitSizes(heads=16, kv_heads=2, intermediate_size=11008)
LLAMA_3_1_8B = SplitSizes(heads=32, kv_heads=8, intermediate_size=14336)


@pytest.mark.parametrize(
    ("sizes", "possible"),
    [
        (SMOLLM2_135M, [1, 3]),
        (QWEN2_5_3B, [1, 2, 4, 8, 16]),
        (LLAMA_3_1_8B, [1, 2, 4, 8, 16, 32]),
        (SplitSizes(heads=12, kv_heads=6, intermediate_size=12), [1, 2, 3, 6, 12]),
    ],
)
def test_possible_numbers(sizes: SplitSizes, possible: list[int]) -> None:
    assert sizes.possible() == possible


@pytest.mark.parametrize(
    ("sizes", "shards", "obstacle"),
    [
        (SMOLLM2_135M, 2, "does not divide the model's 9 attention heads"),
        (SMOLLM2_135M, 9, "does not divide the model's 1536 intermediate size"),
        (SplitSizes(12, 6, 12), 4, "is neither a divisor nor a multiple of the model's 6 key-value heads"),
    ],
)
def test_the_obstacle_is_named(sizes: SplitSizes, shards: int, obstacle: str) -> None:
    assert sizes.obstacle(shards) == obstacle
