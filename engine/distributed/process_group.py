"""The ranks that share one model: who this one is, and the few collectives that tensor parallelism needs.

Shoeybi et al., "Megatron-LM", 2019: column-parallel layers split their outputs, row-parallel ones their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ShardGroup:
    """This rank's place among `size` ranks. With one rank every collective is free."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def gather_columns(self, x: Tensor) -> Tensor | None:
        """Concatenate `x` [T, n] of all ranks along n, on rank 0; None elsewhere. All ranks pass equal shapes."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x.contiguous(), parts, dst=0)
        return torch.cat(parts, dim=-1) if parts is not None else None

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x` on every rank, in place."""
        if self.size > 1:
            dist.broadcast(x, src=0)
        return x

    def smallest(self, value: int) -> int:
        """The smallest `value` of all ranks."""
        if self.size == 1:
            return value
        values: list[int] = [0] * self.size
        dist.all_gather_object(values, value)
        return min(values)

    def slice(self, total: int) -> slice:
        """This rank's share of `total` rows, which the number of ranks divides."""
        share = total // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


def join(group: ShardGroup, store: str, device: torch.device) -> ShardGroup:
    """Make `device` this rank's, and meet the other ranks through the file `store`."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton and nccl use the current device
    if group.size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=group.rank, world_size=group.size)
    return group
