"""The default model with the demo adapters against transformers + PEFT, on one rank and on three."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.equality import Scored, assert_close, assert_same_bits
from support.peft_oracle import Oracle

from motet.core.messages import PreparedAdapter
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.client.tokenizer import ModelTokenizer
from motet.engine.llm import Engine

DEMO = Path(__file__).parents[2] / "plugins" / "demo" / "adapters"
ADAPTERS = [None, *(DEMO / name for name in ("pirate", "terse", "ticket"))]
TOKENS = {1: 16, 3: 8}  # by shards: three ranks on fewer cores are slow
QUESTION = "<|im_start|>user\nWhere does the rain come from?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("shards", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_demo_adapters_equal_peft(shards: int, smollm2_directory: Path) -> None:
    prompt = ModelTokenizer(smollm2_directory).encode(QUESTION, add_special_tokens=False)
    params = SamplingParams(max_tokens=TOKENS[shards], temperature=0.0, logprobs=0)

    async def complete(engine: Engine, adapter: PreparedAdapter | None) -> list[Scored]:
        events = await engine.complete(prompt, params, adapter)
        return [Scored(e.token, e.logprob or 0.0) for e in events]

    async def run() -> tuple[list[list[Scored]], list[list[Scored]]]:
        async with Engine.open(smollm2_directory, Settings(device="cpu", shards=shards)) as engine:
            prepared = [None if a is None else await engine.adapter(a) for a in ADAPTERS]
            alone = [await complete(engine, adapter) for adapter in prepared]
            mixed = await asyncio.gather(*(complete(engine, adapter) for adapter in prepared))
            return alone, mixed

    alone, mixed = asyncio.run(run())
    oracle = Oracle(smollm2_directory)
    for adapter, solo, company in zip(ADAPTERS, alone, mixed, strict=True):
        reference, margins = oracle.score(prompt, [s.token for s in solo], adapter)
        assert_close(solo, reference, margins)
        if shards == 1:
            assert_same_bits(solo, company)
        else:
            assert_close(company, solo, margins)
    assert len({tuple(s.token for s in solo) for solo in alone}) == len(ADAPTERS), "four voices"
