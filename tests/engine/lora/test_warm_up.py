"""The check before serving: it passes with correct kernels, and refuses to start with wrong ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.lora import warm_up as module
from motet.engine.lora.lora_batch import LoraBatch
from motet.engine.lora.pool import FusedLora, LoraPool, ModuleShape, PoolSize
from motet.engine.lora.warm_up import warm_up
from motet.engine.staging import StagingBuffer

CPU = torch.device("cpu")
LINEARS = {
    "qk": (ModuleShape("q_proj", 37, 24), ModuleShape("k_proj", 37, 9)),
    "o": (ModuleShape("o_proj", 24, 37),),
}


def pool_of(max_rank: int, pages: int = 4) -> LoraPool:
    """A pool for two layers, full of NaN."""
    pool = LoraPool(LINEARS, PoolSize(2, 2, pages, max_rank, 64), CPU, torch.float32)
    for fused in pool.layers[0].values():
        for tensor in (fused.a, *fused.b):
            tensor.fill_(torch.nan)
    return pool


@pytest.mark.parametrize(("max_rank", "pages"), [(64, 4), (1, 4), (64, 1)])
def test_correct_kernels_pass_and_leave_nothing(max_rank: int, pages: int) -> None:
    pool = pool_of(max_rank, pages)
    warm_up(pool, StagingBuffer(1 << 16, CPU))
    for fused in pool.layers[0].values():
        assert all(fused.pair(0, part) is None for part in range(len(fused.parts)))
        assert not fused.tables[:, :, 0].any()


def nothing(y: Tensor) -> None:
    y.zero_()


def not_a_number(y: Tensor) -> None:
    y[1, -1] = torch.nan


def base_rows(y: Tensor) -> None:
    y[0] += 0.1


@pytest.mark.parametrize(
    ("spoil", "message"), [(nothing, "off by 1 of"), (not_a_number, "not a number"), (base_rows, "off by 0.0")]
)
def test_wrong_kernels_end_the_start(
    spoil: Callable[[Tensor], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.apply_lora

    def wrong(x: Tensor, y: Tensor, fused: FusedLora, batch: LoraBatch) -> None:
        right(x, y, fused, batch)
        if fused.parts == ("o_proj",):
            spoil(y)

    monkeypatch.setattr(module, "apply_lora", wrong)
    with pytest.raises(StartupError, match=message) as caught:
        warm_up(pool_of(64), StagingBuffer(1 << 16, CPU))
    assert "o_proj (24 inputs, 37 outputs)" in str(caught.value)
    assert "q_proj" not in str(caught.value)
