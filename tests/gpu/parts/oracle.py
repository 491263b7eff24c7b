"""The engine against transformers and PEFT: head size 64, prompts of up to 700 tokens, three adapters and the base."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gpu.against_peft import LENGTHS, TOLERANCE, differences, write_head_64_model
from gpu.measuring import Bench, Table, require

from motet.core.settings import Settings


def run(bench: Bench) -> None:
    """Print the table for one rank."""
    compare(bench, shards=1)


def compare(bench: Bench, shards: int) -> None:
    """Print the table. Raises AssertionError if rounding does not explain a difference."""
    device = bench.device.type
    lengths = (40, 300) if bench.tiny else LENGTHS
    with tempfile.TemporaryDirectory() as path:
        model = write_head_64_model(Path(path) / "model")
        settings = Settings(
            device=device,
            shards=shards,
            kv_memory="256MiB" if bench.tiny else "1GiB",
            max_batch_tokens=512,  # the longest prompt is cut into chunks
            max_sequences=16,
            adapter_slots=8,
            max_adapter_rank=128,
        )
        found = differences(model, settings, lengths, Path(path))
    print(f"\n{shards} rank(s). Logprobs may differ by {TOLERANCE[device]}.")
    table = Table("adapter", "prompt tokens", "largest difference of a logprob", "other tokens than a clear choice")
    for d in found:
        table.row(d.adapter, d.prompt, d.logprob, d.tokens)
    wrong = [d for d in found if not d.acceptable(device)]
    require(not wrong, f"rounding does not explain {wrong}")
