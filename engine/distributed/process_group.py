"""The process group of the ranks that share a model, with the collectives that tensor parallelism needs.

Shoeybi et al., "Megatron-LM", 2019: column-parallel layers split their outputs, row-parallel layers their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ShardGroup:
    """This rank's number among `tp_size` ranks. With one rank, the collectives do nothing."""

    tp_rank: int = 0
    tp_size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum `x` over all ranks, in place."""
        if self.tp_size > 1:
            dist.all_reduce(x)
        return x

    def gather_columns(self, x: Tensor) -> Tensor | None:
        """Rank 0 gets the `x` [T, n] of all ranks, concatenated along n; the others get None. All shapes are equal."""
        if self.tp_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.tp_size)] if self.tp_rank == 0 else None
        dist.gather(x.contiguous(), parts, dst=0)
        return torch.cat(parts, dim=-1) if parts is not None else None

    def broadcast(self, x: Tensor) -> Tensor:
        """Copy rank 0's `x` into that of every rank."""
        if self.tp_size > 1:
            dist.broadcast(x, src=0)
        return x

    def smallest(self, value: int) -> int:
        """The smallest `value` of all ranks."""
        if self.tp_size == 1:
            return value
        values: list[int] = [0] * self.tp_size
        dist.all_gather_object(values, value)
        return min(values)

    def slice(self, total: int, heads: int = 0) -> slice:
        """This rank's share of `total` rows, a multiple of `tp_size`.

        If the rows are those of fewer `heads` than ranks, a divisor of `tp_size`, then consecutive ranks have the same
        head.
        """
        shares = min(heads or self.tp_size, self.tp_size)
        first, size = self.tp_rank * shares // self.tp_size, total // shares
        return slice(first * size, (first + 1) * size)


def join(group: ShardGroup, store: str, device: torch.device) -> ShardGroup:
    """Use `device` in this process, and connect to the other ranks through the file `store`."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton and nccl use the current device
    if group.tp_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=group.tp_rank, world_size=group.tp_size)
    return group
