"""What needs a real GPU: the engine on CUDA against the fp32 oracle, and the Triton kernels against the reference.

`make gpu-check` runs these; without a GPU or without flash-attn they are skipped.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from support.equality import Scored
from support.peft_oracle import AdapterCase, Oracle, write_adapter
from support.tiny_models import FAMILIES, write_model

from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.layers.attention import flash_attention
from motet.engine.llm import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or flash_attention() is None,
        reason="needs a GPU and flash-attn",
    ),
]

PARAMS = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0)
ROUGH = 0.3
"""bfloat16 keeps 8 bits of mantissa; this is what its rounding comes to in a logprob of these tiny models."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [n for n in (1, 2) if n <= max(1, torch.cuda.device_count())])
def test_cuda_agrees_with_peft(family: str, shards: int, tmp_path: Path) -> None:
    directory = write_model(family, tmp_path / "model")
    oracle = Oracle(directory)
    cases = [
        AdapterCase(8, "plain", "all"),
        AdapterCase(16, "rslora", "qv"),
        AdapterCase(64, "patterns", "some_layers"),
    ]
    adapters = [None, *(write_adapter(oracle.base, case, tmp_path / case.name) for case in cases)]
    prompt = [(11 * i) % 259 for i in range(40)]

    async def run() -> list[list[Scored]]:
        async with Engine.open(directory, Settings(device="cuda", dtype="bfloat16", shards=shards)) as engine:
            prepared = [None if a is None else await engine.adapter(a) for a in adapters]
            answers = await asyncio.gather(*(engine.complete(prompt, PARAMS, a) for a in prepared))
            return [[Scored(e.token, e.logprob or 0.0) for e in events] for events in answers]

    for adapter, ours in zip(adapters, asyncio.run(run()), strict=True):
        reference, margins = oracle.score(prompt, [s.token for s in ours], adapter)
        for mine, theirs, margin in zip(ours, reference, margins, strict=True):
            assert mine.token == theirs.token or margin < ROUGH
            assert mine.token != theirs.token or abs(mine.logprob - theirs.logprob) < ROUGH
