"""The machine and its software, the bandwidth of copies, and the speed of matrix products."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import torch
import torch.nn.functional as F
from gpu.measuring import Bench, Table, microseconds

PACKAGES = ("torch", "triton", "flash-attn", "transformers", "peft", "numpy")
QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit,pcie.link.gen.max"
LLAMA_8B_WEIGHTS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}


def run(bench: Bench) -> None:
    """Print the tables."""
    _versions(bench)
    _copies(bench)
    _products(bench)


def _versions(bench: Bench) -> None:
    table = Table("what", "version")
    table.row("Python", platform.python_version())
    for package in PACKAGES:
        try:
            table.row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            table.row(package, "not installed")
    table.row("CUDA of PyTorch", torch.version.cuda)
    if bench.is_cuda:
        facts = torch.cuda.get_device_properties(bench.device)
        table.row("compute capability", f"{facts.major}.{facts.minor}, {facts.multi_processor_count} multiprocessors")
        table.row("GPUs", torch.cuda.device_count())
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
        for line in listed.stdout.splitlines():
            table.row(f"nvidia-smi ({QUERY})", line)


def _copies(bench: Bench) -> None:
    table = Table("copy", "GB/s")
    table.row("on the device (read and write)", bench.bandwidth() / 1e9)
    size = (1 << 20) if bench.tiny else (256 << 20)
    target = torch.empty(size, dtype=torch.uint8, device=bench.device)
    for pinned in (False, True) if bench.is_cuda else (False,):
        source = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        seconds = bench.seconds(lambda source=source: target.copy_(source, non_blocking=True), repeats=5)
        table.row(f"host to device, {'pinned' if pinned else 'pageable'}", size / seconds / 1e9)


def _products(bench: Bench) -> None:
    table = Table("product", "µs", "TFLOP/s", "GB/s of the weight")
    side = 64 if bench.tiny else 8192
    cases = {f"{side} x {side}, {side} rows": (side, side, side)}
    for name, (outputs, inputs) in LLAMA_8B_WEIGHTS.items():
        if not bench.tiny:
            cases |= {f"{name} of an 8B, {rows} rows": (rows, outputs, inputs) for rows in (1, 32, 128)}
    for name, (rows, outputs, inputs) in cases.items():
        x, weight = bench.random(rows, inputs), bench.random(outputs, inputs)
        seconds = bench.seconds(lambda x=x, weight=weight: F.linear(x, weight), repeats=10)
        table.row(
            name, microseconds(seconds), 2 * rows * outputs * inputs / seconds / 1e12, weight.nbytes / seconds / 1e9
        )
