"""Merged adapters through the engine, against PEFT's own exact merge (`combination_type="cat"`) in fp32."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from support.equality import Scored, assert_close
from support.peft_oracle import AdapterCase, Oracle, write_adapter
from support.tiny_models import write_model

from motet.core.messages import AdapterPart
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.llm import Engine

PARAMS = SamplingParams(max_tokens=12, temperature=0.0, logprobs=0)
PROMPT = [(11 * i + i * i) % 259 for i in range(40)]
# PEFT's merge takes rslora and the layers from the first adapter's config, so it is right only if that one is plain.
CASES = [
    AdapterCase(12, "plain", "all"),
    AdapterCase(3, "rslora", "qv"),
    AdapterCase(8, "patterns", "missing_layer"),
    AdapterCase(4, "plain", "qv"),
]
WEIGHTS = [(0.5, 0.5, 1.0, 0.25), (1.0, -0.75, 0.0, 2.0)]


def merge_with_peft(base: Any, parts: list[AdapterPart], directory: Path) -> Path:
    """PEFT's merge of `parts`, saved as one adapter. Leaves `base` as it was."""
    names = [f"part{number}" for number in range(len(parts))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the tensors that a case leaves out on purpose
        model = PeftModel.from_pretrained(base, parts[0].directory, adapter_name=names[0])
        for name, part in zip(names[1:], parts[1:], strict=True):
            model.load_adapter(part.directory, name)
        model.add_weighted_adapter(names, [part.weight for part in parts], "merged", combination_type="cat")
        model.save_pretrained(str(directory), selected_adapters=["merged"])
        model.unload()
    return directory / "merged"


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_merged_adapters_equal_pefts(shards: int, tmp_path: Path) -> None:
    directory = write_model("llama", tmp_path / "model")
    oracle = Oracle(directory)
    adapters = [str(write_adapter(oracle.base, case, tmp_path / case.name)) for case in CASES]
    merges = [[AdapterPart(a, w) for a, w in zip(adapters, weights, strict=True)] for weights in WEIGHTS]

    async def serve() -> list[list[Scored]]:
        settings = Settings(device="cpu", shards=shards, max_batch_tokens=4096, kv_memory="64MiB")
        async with Engine.open(directory, settings) as engine:
            prepared = [await engine.merged(parts) for parts in merges]
            answers = await asyncio.gather(*(engine.complete(PROMPT, PARAMS, adapter) for adapter in prepared))
        return [[Scored(e.token, e.logprob or 0.0) for e in answer] for answer in answers]

    for number, (parts, answer) in enumerate(zip(merges, asyncio.run(serve()), strict=True)):
        peft = merge_with_peft(oracle.base, parts, tmp_path / f"peft-{number}")
        reference, margins = oracle.score(PROMPT, [s.token for s in answer], peft)
        assert_close(answer, reference, margins)
        alone, _ = oracle.score(PROMPT, [s.token for s in answer], Path(parts[0].directory))
        assert max(abs(a.logprob - m.logprob) for a, m in zip(alone, reference, strict=True)) > 0.01, "it matters"
