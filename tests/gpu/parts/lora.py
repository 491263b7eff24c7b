"""The LoRA product against float64 at the shapes of an 8B, and its times for few and many distinct adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gpu.measuring import Bench, Table, microseconds, percent, relative_error, require
from safetensors.torch import load_file
from support.random_model import install, random_adapter
from torch import Tensor

from motet.engine.lora.adapter_installer import Installer
from motet.engine.lora.apply import apply_lora
from motet.engine.lora.lora_batch import LoraBatch, lora_batch
from motet.engine.lora.pool import LoraPool, ModuleShape, PoolSize
from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.plan import LoraChunk
from motet.engine.staging import StagingBuffer

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""The largest error as a share of the largest delta. bfloat16 has 8 bits, and y is rounded to it."""

MAX_ROWS = 128

MIXED_RANKS = (1, 3, 8, 16, 64, 0)


def linears(tiny: bool) -> dict[str, tuple[ModuleShape, ...]]:
    """The fused linear layers of Llama-3.1-8B, or small ones."""
    hidden, kv, inner = (72, 24, 104) if tiny else (4096, 1024, 14336)
    return {
        "qkv": tuple(ModuleShape(f"{n}_proj", hidden, hidden if n == "q" else kv) for n in "qkv"),
        "o": (ModuleShape("o_proj", hidden, hidden),),
        "gate_up": (ModuleShape("gate_proj", hidden, inner), ModuleShape("up_proj", hidden, inner)),
        "down": (ModuleShape("down_proj", inner, hidden),),
    }


@dataclass
class Adapters:
    """One layer's pool with random adapters; `tensors[slot]` are the adapter's. One more slot, the last, is empty."""

    bench: Bench
    ranks: Sequence[int]
    directory: Path
    shapes: dict[str, tuple[ModuleShape, ...]] = field(init=False)
    tensors: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes = linears(self.bench.tiny)
        modules = [shape.name for parts in self.shapes.values() for shape in parts]
        pages = 4 * len(self.ranks)
        size = PoolSize(1, len(self.ranks) + 1, pages, 64, MAX_ROWS)
        self.pool = LoraPool(self.shapes, size, self.bench.device, self.bench.dtype)
        slots, installer = AdapterSlots(len(self.ranks), dict.fromkeys(modules, pages)), Installer(self.pool, 0)
        for number, rank in enumerate(self.ranks):
            file = self.directory / f"{number}.safetensors"
            adapter = random_adapter(self.shapes, dict.fromkeys(modules, rank), 1, file, self.bench.dtype)
            command = slots.place(adapter)
            install(installer, command)
            self.tensors[command.slot] = load_file(file)

    def batch(self, chunks: Sequence[LoraChunk]) -> LoraBatch:
        """The tensors of these chunks, on the device."""
        staging = StagingBuffer(1 << 20, self.bench.device)
        staging.begin()
        batch = lora_batch(tuple(chunks), staging)
        staging.send()
        assert batch is not None
        return batch

    def expected(self, linear: str, x: Tensor, y: Tensor, chunks: Sequence[LoraChunk]) -> Tensor:
        """The definition, in float64: y += scale * (x A) B."""
        result = y.double()
        for chunk in chunks:
            rows, column = slice(chunk.start, chunk.start + chunk.length), 0
            for part in self.shapes[linear]:
                a = self.tensors.get(chunk.slot, {}).get(f"0.{part.name}.A")
                if a is not None:
                    b = self.tensors[chunk.slot][f"0.{part.name}.B"]
                    a, b = (t.to(self.bench.device).double() for t in (a, b))
                    result[rows, column : column + part.outputs] += 0.5 * (x[rows].double() @ a.T @ b)
                column += part.outputs
        return result

    def inputs(self, linear: str, rows: int) -> tuple[Tensor, Tensor]:
        """Random x and y for a layer."""
        parts = self.shapes[linear]
        return self.bench.random(rows, parts[0].inputs), self.bench.random(rows, sum(p.outputs for p in parts))


def run(bench: Bench) -> None:
    """Print the tables. Raises AssertionError if a result is wrong."""
    torch.manual_seed(5)
    with tempfile.TemporaryDirectory() as directory:
        _results(Adapters(bench, MIXED_RANKS, Path(directory)))
        _times(Adapters(bench, [16] * (4 if bench.tiny else 128), Path(directory)))


def _results(adapters: Adapters) -> None:
    """All ranks in one batch, with base rows, an empty slot, runs of one adapter, and one adapter in two runs."""
    chunks, start = [], 1  # row 0 is the base's
    for number, length in enumerate((1, 1, 1, 20, 1, 3, 1, 40, 1, 1)):
        chunks.append(LoraChunk(number % (len(MIXED_RANKS) + 1), start, length))
        start += length + number % 2  # base rows between some
    table = Table("layer", "rows", "largest error", "base rows keep their bits", "a row alone has the same bits")
    for linear in adapters.shapes:
        x, y = adapters.inputs(linear, start + 1)
        expected, result = adapters.expected(linear, x, y, chunks), y.clone()
        fused = adapters.pool.layers[0][linear]
        adapters.bench.poison()
        if fused.tiled is not None:
            fused.tiled.hidden.fill_(torch.nan)
        apply_lora(x, result, fused, adapters.batch(chunks))
        error = relative_error(result - y, expected - y)
        covered = {row for c in chunks for row in range(c.start, c.start + c.length)}
        base = [row for row in range(len(x)) if row not in covered]
        kept = torch.equal(result[base], y[base])
        alone = True
        for chunk in (c for c in chunks if c.length == 1):
            one = y[chunk.start : chunk.start + 1].clone()
            batch = adapters.batch([LoraChunk(chunk.slot, 0, 1)])
            apply_lora(x[chunk.start : chunk.start + 1].clone(), one, fused, batch)
            alone = alone and torch.equal(one[0], result[chunk.start])
        table.row(linear, len(x), error, kept, alone)
        require(error < TOLERANCE[adapters.bench.dtype], f"{linear}: the largest error is {error}")
        require(kept, f"{linear}: a base row has changed")


def _times(adapters: Adapters) -> None:
    bench, most = adapters.bench, len(adapters.ranks)
    bandwidth = bench.bandwidth()
    print(f"\nLoRA rank 16. The roofline share is of {bandwidth / 1e9:.0f} GB/s, the speed of a copy.")
    table = Table("layer", "rows", "distinct adapters", "µs", "MB", "of the roofline")
    total: dict[tuple[int, int], float] = {}
    for rows, distinct in dict.fromkeys([(1, 1), (most // 4, most // 4), (most, most), (most, 1)]):
        chunks = [LoraChunk(row % distinct, row, 1) for row in range(rows)]
        batch = adapters.batch(chunks)
        for linear, parts in adapters.shapes.items():
            x, y = adapters.inputs(linear, rows)
            fused = adapters.pool.layers[0][linear]
            seconds = bench.seconds(lambda x=x, y=y, fused=fused, batch=batch: apply_lora(x, y, fused, batch))
            size = bench.dtype.itemsize
            factors = sum((p.inputs + p.outputs) * 16 * size for p in parts) * distinct
            moved = factors + x.nbytes + 2 * y.nbytes
            total[rows, distinct] = total.get((rows, distinct), 0.0) + seconds
            share = percent(moved / seconds / bandwidth)
            table.row(linear, rows, distinct, microseconds(seconds), moved / 1e6, share)
    for (rows, distinct), seconds in total.items():
        table.row("all four, 32 layers", rows, distinct, microseconds(32 * seconds), None, None)
