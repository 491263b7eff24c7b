"""How long an adapter's install takes, idle and beside decode steps, and what it costs those steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import torch
from gpu.measuring import Bench, Table
from gpu.parts.step import RANK, model_directory, settings_for
from support.local_engine import LocalEngine
from support.random_model import random_adapter

from motet.core.messages import PreparedAdapter, TokenEvents
from motet.core.sampling_params import SamplingParams
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.models.linear_specs import module_shapes

PARAMS = SamplingParams(max_tokens=800, temperature=0.0)
INSTALLS = 6


def run(bench: Bench) -> None:
    """Print the table."""
    torch.manual_seed(9)
    rows = 4 if bench.tiny else 32
    with tempfile.TemporaryDirectory() as path:
        directory = model_directory(bench, Path(path))
        engine = LocalEngine(directory, settings_for(bench, rows + 2 * INSTALLS), bench.device)
        config, modules = engine.runner.config, engine.runner.modules
        adapter = random_adapter(
            module_shapes(config, ShardGroup()),
            dict.fromkeys(modules, RANK),
            config.num_layers,
            directory / "adapter.safetensors",
            engine.runner.dtype,
        )
        print(f"\nAn adapter has {adapter.bytes / 1e6:.1f} MB. A request's first token comes after the install.")
        table = Table("steps meanwhile", "first token after, ms", "a step before, ms", "longest step meanwhile, ms")
        table.row("none", statistics.median(_first_token(engine, adapter, i)[0] for i in range(INSTALLS)), None, None)
        for row in range(rows):
            engine.add(f"row-{row}", [(row + i) % 500 for i in range(100)], PARAMS)
        engine.run_until_decoding(rows)
        before = [_timed(engine) for _ in range(10)]
        both = [_first_token(engine, adapter, INSTALLS + i) for i in range(INSTALLS)]
        first, longest = statistics.median(b[0] for b in both), max(b[1] for b in both)
        table.row(f"decodes of {rows} rows", first, statistics.median(before), longest)


def _timed(engine: LocalEngine) -> float:
    """Milliseconds of one turn of the loop."""
    began = time.perf_counter()
    engine.step()
    return (time.perf_counter() - began) * 1e3


def _first_token(engine: LocalEngine, adapter: PreparedAdapter, number: int) -> tuple[float, float]:
    """Milliseconds to the first token of a request whose adapter is new, and those of the longest step until then."""
    name, id = f"new-{number}", f"first-{number}"
    engine.register(msgspec.structs.replace(adapter, id=name, fingerprint=name))
    engine.add(id, [1, 2, 3], SamplingParams(max_tokens=1, temperature=0.0), name)
    engine.sockets.sent.clear()
    began, longest = time.perf_counter(), 0.0
    while not any(e.id == id for m in engine.sockets.sent if isinstance(m, TokenEvents) for e in m.events):
        longest = max(longest, _timed(engine))
        assert time.perf_counter() - began < 60, "the adapter is not installed"
    return (time.perf_counter() - began) * 1e3, longest
