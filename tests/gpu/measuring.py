"""What the parts share: the device, times of calls, bandwidth, and Markdown tables that are printed row by row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FLUSH_BYTES = 256 << 20
"""More than the L2 cache of any GPU, so that a timed call finds none of its data there."""


@dataclass(frozen=True)
class Bench:
    """The device under test. With `tiny`, the sizes are small: the code is exercised, and the times mean nothing."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool

    @classmethod
    def on(cls, kind: str, tiny: bool) -> Bench:
        """The first device of this kind, with the compute dtype that the engine has there."""
        return cls(torch.device("cuda:0" if kind == "cuda" else "cpu"), _DTYPES[kind], tiny)

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers in the compute dtype."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype).mul_(scale)

    def poison(self) -> None:
        """Fill free memory with NaN, so that what a kernel reads before it is written shows in the result."""
        filled = [torch.full((1 << n,), torch.nan, device=self.device) for n in range(8, 16 if self.tiny else 27)]
        self.synchronize()
        del filled

    def seconds(self, call: Callable[[], object], repeats: int = 20) -> float:
        """The median time of `call`. On a GPU, of its kernels, with a cold L2 cache."""
        call()
        if not self.is_cuda:
            times = []
            for _ in range(3):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            return statistics.median(times)
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in events:
            flush.zero_()  # takes long enough for the host to enqueue the call before the device reaches it
            begin.record()
            call()
            end.record()
        self.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3

    def bandwidth(self) -> float:
        """Bytes per second that a copy on the device reads and writes."""
        source = torch.empty((1 << 20) if self.tiny else (1 << 30), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source))


_DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


class Table:
    """A Markdown table. Every row is printed at once, so that it is in the report if a later one fails."""

    def __init__(self, *headers: str) -> None:
        print()
        self.row(*headers)
        self.row(*["---"] * len(headers))

    def row(self, *cells: object) -> None:
        """Print a row."""
        print("| " + " | ".join(map(_cell, cells)) + " |", flush=True)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def microseconds(seconds: float) -> str:
    """A time for a table."""
    return f"{seconds * 1e6:.1f}"


def percent(share: float) -> str:
    """A share for a table."""
    return f"{share:.0%}"


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest expected number; infinite if `result` is not finite."""
    if not bool(torch.isfinite(result).all()):
        return float("inf")
    return float((result.double() - expected.double()).abs().max() / expected.double().abs().max())


def require(holds: bool, message: str) -> None:
    """Raise AssertionError with `message` unless `holds`."""
    if not holds:
        raise AssertionError(message)
