"""Decode steps of an 8B with random weights: their time, and where it goes."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from gpu.measuring import Bench, Table, percent
from support.local_engine import LocalEngine
from support.random_model import LLAMA_8B, TINY_LLAMA, random_adapter
from torch.autograd import DeviceType

from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.models.linear_specs import module_shapes

RANK = 16
PROMPT = 100
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "top_p 0.9": {"temperature": 1.0, "top_p": 0.9},
}
MOST_OUTPUT = 400


@dataclass(frozen=True)
class Case:
    """Decode-only steps of `rows` sequences, each with an adapter of its own or all with the base model."""

    mode: str
    rows: int
    with_lora: bool
    sampling: str


@dataclass(frozen=True)
class Trace:
    """What the profiler saw in one step: kernels on the GPU, launches and waits of the host, the GPU's busy share."""

    kernels: float
    launches: float
    waits: float
    busy: float


def model_directory(bench: Bench, directory: Path) -> Path:
    """Write the model's config."""
    (TINY_LLAMA if bench.tiny else LLAMA_8B).save_pretrained(directory)
    return directory


def settings_for(bench: Bench, most: int) -> Settings:
    """Settings of an engine for `most` sequences, each with an adapter of its own."""
    sizes = {"kv_memory": "16MiB", "max_batch_tokens": 256} if bench.tiny else {"max_batch_tokens": 2048}
    context = 1024
    return Settings(
        device=bench.device.type,
        max_context=context,
        adapter_slots=most + 1,
        max_adapter_rank=RANK,
        max_sequences=most,
        **sizes,
    )


def run(bench: Bench) -> None:
    """Print the table."""
    torch.manual_seed(8)
    batches = (1, 4) if bench.tiny else (1, 32, 128)
    bandwidth = bench.bandwidth()
    print(
        f"\nPrompts of {PROMPT} tokens, LoRA rank {RANK} on all seven modules. Launches, kernels and waits are of one "
        f"step; waits are those that PyTorch reports, then those of the host's calls. The roofline share is of "
        f"{bandwidth / 1e9:.0f} GB/s."
    )
    table = Table(
        "mode", "rows", "LoRA", "sampling", "ms", "tokens/s", "of the roofline", "launches", "kernels", "waits", "busy"
    )
    with tempfile.TemporaryDirectory() as path:
        directory = model_directory(bench, Path(path))
        for mode, settings in modes(bench, settings_for(bench, batches[-1])):
            with opened(bench, directory, settings) as engine:
                _register(engine, batches[-1], directory)
                for rows in batches:
                    for with_lora in (False, True):
                        for sampling in SAMPLINGS:
                            _measure(bench, engine, Case(mode, rows, with_lora, sampling), (table, bandwidth))
                memory = _memory(engine) if bench.is_cuda else ""
        print(memory)


def modes(bench: Bench, settings: Settings) -> Iterator[tuple[str, Settings]]:
    """The ways to run a step, with their settings. There are no graphs on the CPU."""
    if bench.is_cuda:
        yield "graphs", settings
    yield "eager", dataclasses.replace(settings, enforce_eager="on")


@contextmanager
def opened(bench: Bench, directory: Path, settings: Settings) -> Iterator[LocalEngine]:
    """An engine whose memory is free again when the block ends."""
    engine = LocalEngine(directory, settings, bench.device)
    try:
        yield engine
    finally:
        vars(engine).clear()
        gc.collect()
        if bench.is_cuda:
            torch.cuda.empty_cache()


def _register(engine: LocalEngine, count: int, directory: Path) -> None:
    """Register adapters `0`, `1`, …, which share one file."""
    config = engine.runner.config
    shapes = module_shapes(config, ShardGroup())
    ranks = dict.fromkeys(engine.runner.modules, RANK)
    file = directory / "adapter.safetensors"
    adapter = random_adapter(shapes, ranks, config.num_layers, file, engine.runner.dtype)

    for number in range(count):
        engine.register(msgspec.structs.replace(adapter, id=str(number), fingerprint=str(number)))


def _measure(bench: Bench, engine: LocalEngine, case: Case, to: tuple[Table, float]) -> None:
    table, bandwidth = to
    params = SamplingParams(max_tokens=MOST_OUTPUT, **SAMPLINGS[case.sampling])
    for row in range(case.rows):
        prompt = [(row * 31 + i * 7) % 500 for i in range(PROMPT)]
        engine.add(
            f"{case}-{row}", prompt, msgspec.structs.replace(params, seed=row), str(row) if case.with_lora else None
        )
    engine.run_until_decoding(case.rows)
    for _ in range(3):
        engine.step()
    steps = 3 if bench.tiny else 20
    bench.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    bench.synchronize()
    seconds = (time.perf_counter() - began) / steps
    waits = _reported_waits(engine) if bench.is_cuda else None
    trace = _profile(engine) if bench.is_cuda and case.rows == 32 else None
    share = _bytes(engine, case) / seconds / bandwidth
    table.row(
        case.mode,
        case.rows,
        "on" if case.with_lora else "off",
        case.sampling,
        seconds * 1e3,
        round(case.rows / seconds),
        percent(share),
        trace and trace.launches,
        trace and trace.kernels,
        waits if trace is None else f"{waits:g} + {trace.waits:g}",
        trace and percent(trace.busy),
    )
    engine.end_all()


def _bytes(engine: LocalEngine, case: Case) -> int:
    """What a step must read: the weights, every row's adapter, and the keys and values."""
    config, size = engine.runner.config, engine.runner.dtype.itemsize
    shapes = [s for parts in module_shapes(config, ShardGroup()).values() for s in parts]
    weights = config.num_layers * sum(s.inputs * s.outputs for s in shapes) + config.vocab_size * config.hidden_size
    factors = config.num_layers * sum((s.inputs + s.outputs) * RANK for s in shapes) if case.with_lora else 0
    context = PROMPT + 20
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return size * (weights + case.rows * (factors + context * token))


def _memory(engine: LocalEngine) -> str:
    """How the cache was sized, and what the steps have left."""
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    peak, capacity = torch.cuda.max_memory_allocated() / 2**30, engine.runner.capacity
    return (
        f"\nThe cache has {capacity.blocks * capacity.block_size} tokens. Of {total:.1f} GiB, PyTorch had "
        f"{peak:.1f} at most, and {free:.1f} are free after these steps."
    )


def _reported_waits(engine: LocalEngine, steps: int = 4) -> float:
    """Synchronising operations in one step, as PyTorch warns of them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught) / steps


def _profile(engine: LocalEngine, steps: int = 4) -> Trace:
    """Profile some steps."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    events = profile.events()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(("Memcpy", "Memset"))]
    calls = [e.name for e in events if e.device_type == DeviceType.CPU]
    launches = sum("LaunchKernel" in name or name == "cudaGraphLaunch" for name in calls)
    waits = sum(name.startswith("cuda") and "Synchronize" in name for name in calls) - 1  # the last one is ours
    busy = _covered([(e.time_range.start, e.time_range.end) for e in kernels]) / 1e6
    return Trace(len(kernels) / steps, launches / steps, waits / steps, busy / seconds)


def _covered(ranges: list[tuple[float, float]]) -> float:
    """The length of the union of ranges."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
