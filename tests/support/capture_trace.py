"""Records decode steps and draws on fake CUDA, and checks what a CUDA graph cannot do.

`python -m support.capture_trace DIRECTORY` prints a JSON object: `recorded` has, for each recording, the counts of its
launches, copies and waits; `replayed` has the counts of steps that replay
it, with one and several adapters, base rows and padding.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import fake_cuda
from support.launch_counts import install_all
from support.local_engine import InProcessSockets, engine_core, random_runner
from support.random_model import LLAMA_8B
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from motet.core.messages import AbortRequest, AddRequest
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.decode_graphs import Recording
from motet.engine.engine_config import EngineConfig
from motet.engine.engine_core import EngineCore

SIZES = [1, 2, 4]
SETTINGS = Settings(device="cuda", max_context=1024, adapter_slots=3, max_sequences=4, kv_memory="1GiB")


def counts_of(counts: fake_cuda.DeviceCounts) -> dict[str, Any]:
    """The counts as plain data."""
    waits, uploads, downloads = dict(counts.waits), dict(counts.uploads), dict(counts.downloads)
    return {"kernels": counts.kernels, "uploads": uploads, "downloads": downloads, "waits": waits}


def recorder(counts: fake_cuda.DeviceCounts, found: list[dict[str, Any]]) -> Callable[..., Recording]:
    """Counts what recorded work does; a replay is one launch."""

    def record(work: Callable[[], Tensor | None]) -> Recording:
        counts.clear()
        output = work()
        found.append(counts_of(counts))

        def replay() -> None:
            counts.launches["graph"] += 1

        return Recording(replay, output)

    return record


def step(core: EngineCore, counts: fake_cuda.DeviceCounts, requests: list[AddRequest]) -> dict[str, Any]:
    """The counts of a turn that has a decode step of `requests`."""
    inbox = core._sockets.inbox  # type: ignore[attr-defined]
    inbox.extend(requests)
    for _ in range(3):
        core.run_once()
    counts.clear()
    core.run_once()
    found = counts_of(counts) | {"graphs": counts.launches["graph"]}
    inbox.extend(AbortRequest(request.id) for request in requests)
    for _ in range(2):
        core.run_once()
    return found


def requests(name: str, adapters: list[str | None], temperature: float) -> list[AddRequest]:
    """A request for each adapter."""
    params = SamplingParams(max_tokens=50, temperature=temperature, top_p=0.9)
    return [AddRequest(f"{name}-{i}", (5, 6), params, adapter) for i, adapter in enumerate(adapters)]


def main() -> None:
    """Record, then replay."""
    directory = Path(sys.argv[1])
    fake_cuda.register_device_guard(directory)
    model = copy.deepcopy(LLAMA_8B)
    model.num_hidden_layers = 2
    model.save_pretrained(directory)
    counts = fake_cuda.DeviceCounts()
    config = EngineConfig.from_settings(SETTINGS, directory)
    fake_cuda.install_stand_ins(counts)
    recorded: list[dict[str, Any]] = []
    with FakeTensorMode(allow_non_fake_inputs=True), counts:
        runner = random_runner(config, torch.device("cuda", 0))
        core = engine_core(runner, config, InProcessSockets(), overlap=True)  # type: ignore[arg-type]
        record = recorder(counts, recorded)
        runner.record_graphs(SIZES, record, lambda done, total: None)
        core.record_draws(record)
        install_all(core, runner, 3)
        mixes: list[list[str | None]] = [[None], ["0"], ["0", None, "1"], ["2", "2", "1", "0"]]
        replayed = [
            step(core, counts, requests(f"{mix}-{temperature}", mix, temperature))
            for mix in mixes
            for temperature in (0.0, 0.8)
        ]
    print(json.dumps({"recorded": recorded, "replayed": replayed}))


if __name__ == "__main__":
    main()
