"""The process group of the ranks that share a model, with the collectives that tensor parallelism needs.

Shoeybi et al., "Megatron-LM", 2019: column-parallel layers split their outputs, row-parallel layers their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor

from motet.engine.distributed.one_shot import OneShotAllReduce, connect
from motet.engine.distributed.rendezvous import tcp_store


@dataclass(frozen=True)
class ShardGroup:
    """This rank's number among `tp_size` ranks. With one rank, the collectives do nothing.

    With `one_shot`, small tensors are summed by it instead of NCCL.
    """

    tp_rank: int = 0
    tp_size: int = 1
    one_shot: OneShotAllReduce | None = field(default=None, compare=False)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum `x` over all ranks, in place."""
        if self.one_shot is not None and self.one_shot.takes(x):
            self.one_shot(x)
        elif self.tp_size > 1:
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
        # A tensor, since collectives of objects unpickle what other hosts send.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        smallest = torch.tensor([value], dtype=torch.int64, device=device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def slice(self, total: int, heads: int = 0) -> slice:
        """This rank's share of `total` rows, a multiple of `tp_size`.

        If the rows are those of fewer `heads` than ranks, a divisor of `tp_size`, then consecutive ranks have the same
        head.
        """
        shares = min(heads or self.tp_size, self.tp_size)
        first, size = self.tp_rank * shares // self.tp_size, total // shares
        return slice(first * size, (first + 1) * size)


def join(group: ShardGroup, store: str, device: torch.device) -> ShardGroup:
    """Use `device` in this process, and connect to the other ranks.

    `store` is a new file, or on several hosts `tcp://HOST:PORT/ENGINE` with an address of rank 0's host.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton and nccl use the current device
    if group.tp_size == 1:
        return group
    is_cuda = device.type == "cuda"
    found = tcp_store(store, group.tp_rank, device) if store.startswith("tcp:") else None
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        init_method=f"file://{store}" if found is None else None,
        store=found,
        rank=group.tp_rank,
        world_size=group.tp_size,
        device_id=device if is_cuda else None,
    )
    if not is_cuda:
        return group
    group.all_reduce(torch.zeros(1, device=device))  # now, so that NCCL's buffers are counted when memory is divided
    return with_one_shot(group, device) if found is None else group  # which needs GPUs of one host


def with_one_shot(group: ShardGroup, device: torch.device) -> ShardGroup:
    """`group` with OneShotAllReduce if it works on all ranks; else `group`, and a log line of rank 0 says why."""
    found = connect(group.tp_rank, group.tp_size, device)
    one_shot = None if isinstance(found, str) else found
    if group.smallest(one_shot is not None):
        return replace(group, one_shot=one_shot)
    if group.tp_rank == 0:
        reason = found if isinstance(found, str) else "another rank cannot use it"
        logger.info("NCCL sums tensors of all sizes; one-shot all-reduce does not work here: {}", reason)
    return group


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()
