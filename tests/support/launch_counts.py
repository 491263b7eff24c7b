"""Counts the launches, copies and waits of decode steps of an 8B on fake CUDA.

`python -m support.launch_counts DIRECTORY LAYERS:CASE,CASE…` prints a JSON object: for each case, such as
`2:greedy-32` (2 layers, 32 rows), the counts of one turn of rank 0's loop, which has one decode step.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from support import fake_cuda
from support.local_engine import InProcessSockets, engine_core, random_runner
from support.random_model import LLAMA_8B
from torch._subclasses.fake_tensor import FakeTensorMode

from motet.core.messages import AbortRequest, AddRequest, LoraEntry, PreparedAdapter
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.engine_config import EngineConfig
from motet.engine.engine_core import EngineCore
from motet.engine.model_runner import ModelRunner

RANK = 16
MOST_ROWS = 32
SAMPLINGS = {
    "base": {"temperature": 0.0},
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.5, "logit_bias": {7: 1.0}},
}


def install_all(core: EngineCore, runner: ModelRunner, count: int) -> None:
    """Fill `count` slots with adapters on all seven modules, without their data."""
    entries = tuple(
        LoraEntry(layer, module, RANK, 1.0) for layer in range(runner.config.num_layers) for module in runner.modules
    )
    for number in range(count):
        adapter = PreparedAdapter(str(number), str(number), ("",), entries, 0)
        core.scheduler.register(adapter)
        runner.pool.point(core.scheduler.slots.place(adapter))
        core.scheduler.slots.mark_ready(str(number))


def decode_step(
    core: EngineCore, sockets: InProcessSockets, counts: fake_cuda.DeviceCounts, case: str
) -> dict[str, object]:
    """The counts of one decode step, in which each row has its own adapter, or none in the case `base`."""
    sampling, rows = case.split("-")[0], int(case.split("-")[1])
    for row in range(rows):
        params = SamplingParams(max_tokens=50, seed=row, **SAMPLINGS[sampling])
        adapter = None if sampling == "base" else str(row)
        sockets.inbox.append(AddRequest(f"{case}-{row}", (5, 6, 7), params, adapter))
    for _ in range(3):  # the prompts, and two decode steps
        core.run_once()
    running = core.scheduler.running
    assert len(running) == rows, running
    assert all(s.output for s in running), "all sequences decode"
    counts.clear()
    core.run_once()
    found: dict[str, object] = {
        "kernels": counts.kernels,
        "launches": dict(counts.launches),
        "uploads": dict(counts.uploads),
        "downloads": dict(counts.downloads),
        "waits": dict(counts.waits),
    }
    for sequence in core.scheduler.sequences():
        sockets.inbox.append(AbortRequest(sequence.id))
    core.run_once()
    return found


def count_cases(directory: Path, layers: int, cases: list[str], counts: fake_cuda.DeviceCounts) -> dict[str, object]:
    """The counts of every case with a model of `layers` layers."""
    model = copy.deepcopy(LLAMA_8B)
    model.num_hidden_layers = layers
    model.save_pretrained(directory)
    settings = Settings(
        device="cuda",
        max_context=1024,
        adapter_slots=MOST_ROWS,
        max_sequences=64,
        max_batch_tokens=256,
        kv_memory="8GiB",
        enforce_eager="on",
    )
    config = EngineConfig.from_settings(settings, directory)
    runner = random_runner(config, torch.device("cuda", 0))
    sockets = InProcessSockets()
    core = engine_core(runner, config, sockets, overlap=True)
    install_all(core, runner, MOST_ROWS)
    return {f"{layers}:{case}": decode_step(core, sockets, counts, case) for case in cases}


def main() -> None:
    """Count every case."""
    directory, counts, found = Path(sys.argv[1]), fake_cuda.DeviceCounts(), {}
    fake_cuda.register_device_guard(directory)
    fake_cuda.install_stand_ins(counts)
    for argument in sys.argv[2:]:
        layers, _, cases = argument.partition(":")
        with FakeTensorMode(allow_non_fake_inputs=True), counts:
            found |= count_cases(directory, int(layers), cases.split(","), counts)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
