"""The engine against transformers and PEFT, on 2 and on 4 GPUs."""

from __future__ import annotations

import torch
from gpu.measuring import Bench
from gpu.parts.oracle import compare


def run(bench: Bench) -> None:
    """Print a table for each number of shards that there are GPUs for."""
    for shards in (2, 4):
        if bench.tiny or shards <= torch.cuda.device_count():
            compare(bench, shards)
