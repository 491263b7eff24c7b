"""The numbers of a step: written into host memory, then copied to the device in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes to which every array is aligned."""

REMEMBERED_VIEWS = 4096

_TORCH_TYPES = {
    "bool": torch.bool,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "float64": torch.float64,
}


class StagingBuffer:
    """`begin`, `put` every array of the step, then `send`: one copy to the device, and no wait for it.

    The device memory never moves, and arrays of the same shapes, put in the same order, have the same addresses. So a
    captured graph can read them. On the CPU, the tensors are views of the host memory, and nothing is copied. On CUDA
    the copy reads pinned memory while the next step is written, so there are two host buffers, used in turn.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity` is in bytes."""
        self.device = device
        self._capacity, self._used = capacity, 0
        self._is_cuda = device.type == "cuda"
        count = 2 if self._is_cuda else 1
        hosts = [torch.empty(capacity, dtype=torch.uint8, pin_memory=self._is_cuda) for _ in range(count)]
        self._hosts = [(tensor, tensor.numpy()) for tensor in hosts]
        self._copied = [torch.cuda.Event() for _ in hosts] if self._is_cuda else []
        self._memory = torch.empty(capacity, dtype=torch.uint8, device=device) if self._is_cuda else hosts[0]
        self._current = 0
        self._views: dict[tuple[int, tuple[int, ...], str], Tensor] = {}

    def begin(self) -> None:
        """Forget the last step's arrays. Waits if the host buffer that comes next is still being copied."""
        self._used = 0
        if self._is_cuda:
            self._current = 1 - self._current
            self._copied[self._current].synchronize()

    def put(self, values: npt.ArrayLike, dtype: str) -> Tensor:
        """The device's tensor of `values`, which has them after `send`, until the next `begin`.

        `dtype` is bool, int16, int32, int64, float32 or float64. Raises ValueError if the capacity is exceeded.
        """
        array = np.asarray(values, dtype)
        start, stop = self._used, self._used + array.nbytes
        if stop > self._capacity:
            raise ValueError(f"a step needs more than {self._capacity} bytes of staging memory")
        self._used = -(-stop // ALIGNMENT) * ALIGNMENT
        self._hosts[self._current][1][start:stop].view(dtype)[:] = array.ravel()
        key = (start, array.shape, dtype)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= REMEMBERED_VIEWS:
                self._views.clear()
            view = self._memory[start:stop].view(_TORCH_TYPES[dtype]).view(array.shape)
            self._views[key] = view
        return view

    def send(self) -> None:
        """Copy what was put to the device, in the order of its stream."""
        if self._is_cuda and self._used:
            self._memory[: self._used].copy_(self._hosts[self._current][0][: self._used], non_blocking=True)
            self._copied[self._current].record()


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The device's tensor of `array`, for what few steps need. Nothing waits for the copy; on the CPU there is none."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
