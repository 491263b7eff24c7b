"""One-shot all-reduce: which tensors it takes, and its one buffer. The operator itself needs several GPUs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from motet.engine.distributed.one_shot import MAX_BYTES, OneShotAllReduce
from motet.engine.distributed.process_group import ShardGroup


@pytest.fixture
def one_shot() -> OneShotAllReduce:
    """An instance with its buffer on the CPU."""
    made = OneShotAllReduce.__new__(OneShotAllReduce)
    made._group_name, made._buffer = "ranks", torch.zeros(MAX_BYTES, dtype=torch.uint8)
    return made


def test_it_sums_in_place_through_the_buffer(one_shot: OneShotAllReduce, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the operator, which has the signature of the installed PyTorch's."""
    signature = str(torch.ops.symm_mem.one_shot_all_reduce_out.default._schema)
    assert "(Tensor input, str reduce_op, str group_name, Tensor(a!) out)" in signature
    called = []

    def operator(shared: Tensor, reduce_op: str, group_name: str, out: Tensor) -> Tensor:
        called.append((shared.data_ptr(), reduce_op, group_name))
        return out.copy_(shared * 2)

    monkeypatch.setattr(torch.ops.symm_mem, "one_shot_all_reduce_out", operator)
    group = ShardGroup(0, 2, one_shot)
    for x in (torch.randn(3, 8), torch.randn(64, 4096).bfloat16()):
        expected = x * 2
        assert group.all_reduce(x) is x
        assert torch.equal(x, expected)
    assert called == [(one_shot._buffer.data_ptr(), "sum", "ranks")] * 2


def test_other_tensors_are_for_nccl(one_shot: OneShotAllReduce) -> None:
    large = torch.zeros(65, 4096, dtype=torch.bfloat16)
    assert one_shot.takes(torch.zeros(8))
    assert one_shot.takes(large[:64])
    refused = {
        "large": large,
        "empty": large[:0],
        "odd size": torch.zeros(7),
        "odd address": torch.zeros(16)[1:9],
        "dtype": torch.zeros(8, dtype=torch.float16),
        "transposed": torch.zeros(8, 4).T,
    }
    assert [name for name, x in refused.items() if one_shot.takes(x)] == []
