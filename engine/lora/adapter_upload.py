"""Copies an adapter's tensors into the pools on a GPU while steps run, on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.engine.staging import ALIGNMENT, StagingBuffer

UPLOAD_BYTES = 128 << 20
"""Adapters up to this size are copied in one piece: rank 16 on all modules of an 8B model takes 84 MB in bf16."""

_SAME_SIZE = {2: torch.int16, 4: torch.int32}
"""The integer type that carries numbers of this many bytes through NumPy, which has no bfloat16."""


@dataclass(frozen=True)
class PoolWrite:
    """`tensor` [n, width] belongs into the rows `rows` [n] of `pool` [pool rows, width]."""

    pool: Tensor
    rows: list[int]
    tensor: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of their int64 numbers."""
        return len(self.rows) * (self.pool.shape[1] * self.pool.element_size() + 8)


def upload_capacity(largest_write: int, adapter: int, pools: int) -> int:
    """Bytes of staging memory for adapters of at most `adapter` bytes in `pools` pools; every single write must fit."""
    return max(largest_write, min(adapter, UPLOAD_BYTES)) + 2 * ALIGNMENT * pools


class AdapterUpload:
    """Writes go through pinned memory to the device in one copy, and from there to each pool in one operation."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity` is in bytes; larger adapters take several copies."""
        self._staging, self._capacity = StagingBuffer(capacity, device), capacity
        self._stream = torch.cuda.Stream(device)

    def write(self, writes: Iterable[PoolWrite], after: torch.cuda.Event) -> None:
        """Write to the pools once the device has reached `after`; returns when the device has finished.

        The calling thread sleeps meanwhile, so while the engine serves it must not be the one that runs steps.
        """
        by_pool = sorted(writes, key=lambda write: id(write.pool))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            for batch in self._batches(by_pool):
                self._staging.begin()
                staged = [(pool, *self._put(pool, part)) for pool, part in _grouped(batch)]
                self._staging.send()
                for pool, rows, tensor in staged:
                    pool.index_copy_(0, rows, tensor)
            done = torch.cuda.Event(blocking=True)
            done.record()
        done.synchronize()

    def _batches(self, writes: list[PoolWrite]) -> Iterator[list[PoolWrite]]:
        """The writes in pieces that the staging memory has room for."""
        batch: list[PoolWrite] = []
        used = 0
        for write in writes:
            size = write.nbytes + 2 * ALIGNMENT * (not batch or batch[-1].pool is not write.pool)
            if batch and used + size > self._capacity:
                yield batch
                batch, used = [], 0
                size = write.nbytes + 2 * ALIGNMENT
            batch.append(write)
            used += size
        if batch:
            yield batch

    def _put(self, pool: Tensor, writes: list[PoolWrite]) -> tuple[Tensor, Tensor]:
        """Stage the writes to one pool; returns the device's row numbers and rows."""
        together = torch.cat([write.tensor.to(pool.dtype) for write in writes])
        carrier = _SAME_SIZE[pool.element_size()]
        staged = self._staging.put(together.view(carrier).numpy(), str(carrier).removeprefix("torch."))
        rows = self._staging.put([row for write in writes for row in write.rows], "int64")
        return rows, staged.view(pool.dtype)


def _grouped(writes: list[PoolWrite]) -> list[tuple[Tensor, list[PoolWrite]]]:
    """Neighbouring writes to the same pool, together."""
    groups: list[tuple[Tensor, list[PoolWrite]]] = []
    for write in writes:
        if groups and groups[-1][0] is write.pool:
            groups[-1][1].append(write)
        else:
            groups.append((write.pool, [write]))
    return groups
