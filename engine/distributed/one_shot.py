"""All-reduce of small tensors in one kernel, which reads the other ranks' GPUs (PyTorch's symmetric memory).

It takes a few microseconds where NCCL takes tens, and a decode step has two for each layer. It needs GPUs of one host
that can read each other's memory. It has not run on a GPU yet; `connect` checks a result before it is used.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

MAX_BYTES = 512 << 10
"""Above this size NCCL is faster, since here every rank reads the whole tensor of every other rank."""

_ALIGNMENT = 16


class OneShotAllReduce:
    """Sums tensors over all ranks of the process group, through one buffer on each GPU."""

    def __init__(self, device: torch.device) -> None:
        """All ranks must call it. Raises various errors if `device` does not support it."""
        from torch.distributed import _symmetric_memory as symmetric_memory

        group = dist.group.WORLD
        assert group is not None, "the ranks have joined"
        self._group_name = group.group_name
        self._buffer = symmetric_memory.empty(MAX_BYTES, dtype=torch.uint8, device=device)
        symmetric_memory.rendezvous(self._buffer, self._group_name)

    def takes(self, x: Tensor) -> bool:
        """Whether the kernel can sum `x`."""
        size = x.numel() * x.element_size()
        fits = 0 < size <= MAX_BYTES and size % _ALIGNMENT == 0 and x.data_ptr() % _ALIGNMENT == 0
        return fits and x.is_contiguous() and x.dtype in (torch.bfloat16, torch.float32)

    def __call__(self, x: Tensor) -> None:
        """Sum `x` over all ranks, in place. All ranks add in the same order."""
        shared = self._buffer[: x.numel() * x.element_size()].view(x.dtype).view(x.shape)
        # Not one_shot_all_reduce_copy_out: its kernel has no barrier between its own copy and the other ranks' reads.
        shared.copy_(x)
        torch.ops.symm_mem.one_shot_all_reduce_out(shared, "sum", self._group_name, x)


def connect(tp_rank: int, tp_size: int, device: torch.device) -> OneShotAllReduce | str:
    """This rank's OneShotAllReduce after a correct sum, or the reason why there is none. All ranks must call it."""
    if device.type == "cuda" and not _reads_peers(tp_size):
        return "the GPUs cannot read each other's memory"
    try:
        one_shot = OneShotAllReduce(device)
        x = torch.full((1024,), tp_rank + 1.0, dtype=torch.bfloat16, device=device)
        one_shot(x)
        expected = tp_size * (tp_size + 1) / 2
        return one_shot if bool((x == expected).all()) else f"the sum was {x[0].item():g} instead of {expected:g}"
    except Exception as error:  # of many types, by driver, GPU and PyTorch
        return f"{type(error).__name__}: {error}"


def _reads_peers(tp_size: int) -> bool:
    """Whether each rank has a GPU of this host that can read those of the others."""
    if torch.cuda.device_count() < tp_size:
        return False
    pairs = ((i, j) for i in range(tp_size) for j in range(tp_size) if i != j)
    return all(torch.cuda.can_device_access_peer(i, j) for i, j in pairs)
