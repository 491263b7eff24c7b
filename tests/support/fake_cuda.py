"""Fake CUDA: the engine runs on `cuda` tensors without data, and every launch, copy and wait is counted.

Use it in a process of its own: it registers a device guard for CUDA that does nothing, and replaces functions of torch
and Triton that need a GPU.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.cpp_extension import include_paths, library_paths

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
"""

NO_KERNEL = {
    "aten::_unsafe_view",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::new_empty_strided",
}
"""Operators that are not views and launch nothing."""

KERNELS = {"aten::topk": 20, "aten::sort": 10, "aten::cumsum": 2, "flash_attn": 2}
"""Kernels of calls that launch several, as estimated from their sources for a vocabulary of 128256: topk's four radix
passes, sort's segments, flash-attn's split and combine. Other calls count as one."""


def register_device_guard(directory: Path) -> None:
    """Compile and load a device guard for CUDA that does nothing. Needs g++.

    Motet's cache is moved into `directory`, too: the records of configs that are read from now on have fake numbers.
    """
    os.environ["MOTET_CACHE"] = str(directory / "cache")
    source, library = directory / "guard.cpp", directory / "guard.so"
    source.write_text(GUARD)
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", str(source), "-o", str(library)]
    command += [f"-I{path}" for path in include_paths()]
    command += [f"-L{path}" for path in library_paths()]
    subprocess.run([*command, "-lc10"], check=True)
    ctypes.CDLL(str(library))


class DeviceCounts(TorchDispatchMode):
    """Counts what the host asks of the device: `launches` by name, `uploads`, `downloads`, and `waits` by reason.

    Values that the host reads are 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.last_copy = ""
        self._pinned: set[int] = set()

    def clear(self) -> None:
        """Begin to count."""
        for counter in (self.launches, self.uploads, self.downloads, self.waits):
            counter.clear()

    @property
    def kernels(self) -> int:
        """All launches, with those that one call makes."""
        return sum(count * KERNELS.get(name, 1) for name, count in self.launches.items())

    def pinned(self, size: Any, **options: Any) -> Tensor:
        """Pinned host memory: real, so that NumPy can write it."""
        with unset_fake_temporarily():
            return self.pin(torch.zeros(*size, **options))

    def pin(self, tensor: Tensor) -> Tensor:
        """Take host memory for pinned."""
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and _on_cuda(args):
            self._read(name, args[0])
            return {torch.bool: False}.get(args[0].dtype, 0)
        if name in ("aten::copy_", "aten::_to_copy"):
            moved = self._copy(name, args, kwargs)
            if moved is not None:
                return moved
        if name.startswith("aten::"):
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if given and not any(isinstance(t, FakeTensor) for t in given):
            with unset_fake_temporarily():  # pinned memory stays real
                return func(*args, **kwargs)
        if _on_cuda(given):
            args, kwargs = tree_map(self._sent, (args, kwargs))
        result = func(*args, **kwargs)
        tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        launches = any(t.device.type == "cuda" and t.numel() for t in tensors)
        if launches and name not in NO_KERNEL and not func.is_view:
            self.launches[name] += 1
        return result

    def _sent(self, value: Any) -> Any:
        """An operand of an operation on the device: an index in host memory is copied first."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or not value.dim():
            return value
        self.uploads[_shape(value)] += 1
        self.waits[f"upload of {_shape(value)}"] += 1
        return torch.empty(value.shape, dtype=value.dtype, device="cuda:0")

    def _copy(self, name: str, args: Any, kwargs: Any) -> Any:
        """Count a copy between host and device; the host's copy of device data stays as it is."""
        source = args[1] if name == "aten::copy_" else args[0]
        target = args[0].device if name == "aten::copy_" else kwargs.get("device") or source.device
        if {source.device.type, torch.device(target).type} != {"cpu", "cuda"} or not source.numel():
            return None
        waits = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        if source.device.type == "cuda":
            self._read(name, source, waits)
            if name == "aten::copy_" and not isinstance(args[0], FakeTensor):
                return args[0]
            return None
        self.uploads[_shape(source)] += 1
        self.last_copy = "upload"
        if waits or isinstance(source, FakeTensor) or source.untyped_storage().data_ptr() not in self._pinned:
            self.waits[f"upload of {_shape(source)}"] += 1
        if name == "aten::copy_":
            return args[0]
        return torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=target)

    def _read(self, name: str, tensor: Tensor, waits: bool = True) -> None:
        self.downloads[_shape(tensor)] += 1
        self.last_copy = "download"
        if waits:
            self.waits[f"{name.removeprefix('aten::')} of {_shape(tensor)}"] += 1


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _on_cuda(args: Any) -> bool:
    return any(isinstance(t, Tensor) and t.device.type == "cuda" for t in tree_leaves(args))


class _Event(AbstractContextManager):
    """torch.cuda.Event and torch.cuda.Stream. A wait for an event is named after the copy before its record."""

    counts: DeviceCounts

    def __init__(self, *args: object, **options: object) -> None:
        self.cuda_stream = self.stream_id = 0
        self._after = ""

    def __exit__(self, *args: object) -> None: ...

    def record(self, *args: object) -> None:
        self._after = self.counts.last_copy

    def query(self) -> bool:
        return True

    def wait(self, *args: object) -> None: ...

    wait_event = wait_stream = record_event = wait

    def synchronize(self) -> None:
        if self._after:  # else it was never recorded
            self.counts.waits[f"event after the {self._after}"] += 1


def install_stand_ins(counts: DeviceCounts) -> None:
    """Replace what needs a GPU: pinned memory, events and streams, reads of values, Triton's launches, flash-attn."""
    _Event.counts = counts
    cuda: Any = torch.cuda
    cuda.Event = cuda.Stream = _Event
    cuda.stream = lambda stream: stream
    cuda.current_stream = cuda.default_stream = lambda *args: _Event()
    cuda.mem_get_info = lambda *args: (80 << 30, 80 << 30)
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.get_device_capability = lambda *args: (9, 0)
    cuda.set_device = cuda.empty_cache = cuda.reset_peak_memory_stats = lambda *args: None
    cuda.max_memory_allocated = cuda.memory_allocated = cuda.max_memory_reserved = lambda *args: 0
    cuda.synchronize = lambda *args: counts.waits.update(["synchronize"])
    _replace_memory(counts)
    _replace_reads(counts)
    _replace_indexing()
    _replace_triton(counts)
    attend = _attention(counts)
    sys.modules["flash_attn"] = types.SimpleNamespace(  # type: ignore[assignment]
        flash_attn_varlen_func=attend, flash_attn_with_kvcache=attend
    )


def _replace_memory(counts: DeviceCounts) -> None:
    empty, zeros, tensor = torch.empty, torch.zeros, torch.tensor

    def pinned_or(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            return counts.pinned(size, **options) if pin_memory else make(*size, **options)

        return wrapper

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        result = tensor(data, **options)
        if device is None or torch.device(device).type == "cpu":
            return result
        return result.to(device)

    torch.empty, torch.zeros, torch.tensor = pinned_or(empty), pinned_or(zeros), made
    Tensor.pin_memory = lambda self: counts.pin(self)  # type: ignore[method-assign,assignment]
    addresses: dict[int, int] = {}
    pointer = Tensor.data_ptr

    def data_ptr(self: Tensor) -> int:
        return (
            addresses.setdefault(id(self), 4096 * (1 + len(addresses)))
            if isinstance(self, FakeTensor)
            else pointer(self)
        )

    Tensor.data_ptr = data_ptr  # type: ignore[method-assign]


def _replace_reads(counts: DeviceCounts) -> None:
    numpy = Tensor.numpy

    def read_list(self: Tensor) -> Any:
        if self.device.type == "cuda":
            counts._read("tolist", self)
        with unset_fake_temporarily():
            return torch.zeros(self.shape, dtype=self.dtype).tolist()

    def read_numpy(self: Tensor, **options: Any) -> Any:
        if not isinstance(self, FakeTensor):
            return numpy(self, **options)
        assert self.device.type == "cpu", "numpy cannot read the device"
        with unset_fake_temporarily():
            return torch.zeros(self.shape, dtype=self.dtype).numpy()

    FakeTensor.tolist, Tensor.numpy = read_list, read_numpy  # type: ignore[method-assign]


def _replace_indexing() -> None:
    """PyTorch copies a list of indices to the device where nothing can count it."""

    def plain(index: Any, device: torch.device) -> Any:
        if isinstance(index, tuple):
            return tuple(plain(i, device) for i in index)
        return torch.tensor(index, device=device) if isinstance(index, list) else index

    getitem, setitem = Tensor.__getitem__, Tensor.__setitem__
    Tensor.__getitem__ = lambda self, index: getitem(self, plain(index, self.device))  # type: ignore[assignment]
    Tensor.__setitem__ = lambda self, index, value: setitem(self, plain(index, self.device), value)  # type: ignore[assignment]


def _replace_triton(counts: DeviceCounts) -> None:
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        counts.launches[f"triton::{self.fn.__name__}"] += 1

    JITFunction.run = run


def _attention(counts: DeviceCounts) -> Callable[..., Tensor]:
    """Both of flash-attn's functions."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, **options: Any) -> Tensor:
        counts.launches["flash_attn"] += 1
        return torch.empty_like(q)

    return attend
