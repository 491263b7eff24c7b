"""Greedy tokens and logprobs against transformers + PEFT, over families, shards, ranks, scales and targets.

One engine per family and shard count serves a whole sweep, every adapter alone and then all of them mixed with the
base in one batch. `make test` runs a pairwise sample on one engine and every single value on some others;
`make test-all` runs everything.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.equality import Scored, assert_close, assert_same_bits
from support.peft_oracle import AdapterCase, Oracle, all_cases, each_value_cases, pairwise_cases, write_adapter
from support.tiny_models import FAMILIES, write_model

from motet.core.messages import PreparedAdapter
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.llm import Engine

OUTPUT = 8
PARAMS = SamplingParams(max_tokens=OUTPUT, temperature=0.0, logprobs=0)
SAMPLED = [("llama3", 2), ("mistral", 1), ("qwen3", 3)]
ENGINES = [(family, shards) for family in FAMILIES for shards in (1, 2, 3)]
SHARED_HEADS = [(family, kv_heads, shards) for family in FAMILIES for kv_heads, shards in ((1, 2), (1, 4), (2, 4))]
"""Models whose key-value heads are fewer than the ranks."""
SWEEPS = [
    pytest.param("llama", 1, pairwise_cases(), id="llama-1"),
    *[pytest.param(f, s, each_value_cases(), id=f"{f}-{s}") for f, s in SAMPLED],
    *[pytest.param(f, s, all_cases(), id=f"{f}-{s}-all", marks=pytest.mark.slow) for f, s in ENGINES],
]


async def complete(engine: Engine, prompt: list[int], adapter: PreparedAdapter | None) -> list[Scored]:
    """Greedy decoding through the engine."""
    events = await engine.complete(prompt, PARAMS, adapter)
    return [Scored(e.token, e.logprob if e.logprob is not None else float("nan")) for e in events]


def make_prompt(number: int, vocab_size: int) -> list[int]:
    """A prompt; short ones and ones long enough for several blocks and a sliding window."""
    return [(7 * number + 13 * i + i * i) % vocab_size for i in range(5 + number * 11 % 50)]


@pytest.mark.parametrize(("family", "shards", "cases"), SWEEPS)
def test_sweep_equals_peft(family: str, shards: int, cases: list[AdapterCase], tmp_path: Path) -> None:
    check_sweep(write_model(family, tmp_path / "model"), shards, cases)


@pytest.mark.parametrize(
    ("family", "kv_heads", "shards", "cases"),
    [
        ("qwen2", 1, 2, each_value_cases()[1:]),
        *[pytest.param(*engine, each_value_cases(), marks=pytest.mark.slow) for engine in SHARED_HEADS],
    ],
)
def test_ranks_that_share_a_key_value_head_equal_peft(
    family: str, kv_heads: int, shards: int, cases: list[AdapterCase], tmp_path: Path
) -> None:
    check_sweep(write_model(family, tmp_path / "model", num_key_value_heads=kv_heads), shards, cases)


def check_sweep(directory: Path, shards: int, cases: list[AdapterCase]) -> None:
    """Compare the model in `directory` on `shards` ranks with the oracle, for every case's adapter and the base."""
    oracle = Oracle(directory)
    adapters: list[Path | None] = [write_adapter(oracle.base, case, directory.parent / case.name) for case in cases]
    adapters += [None, None, adapters[0]]
    prompts = [make_prompt(i, oracle.vocab_size) for i in range(len(adapters))]

    async def sweep() -> tuple[list[list[Scored]], list[list[Scored]]]:
        # Fewer slots than adapters, so that some are evicted and come back; a step that takes every prompt whole.
        slots = min(24, len(cases) - 2)
        settings = Settings(device="cpu", shards=shards, adapter_slots=slots, max_batch_tokens=4096, kv_memory="64MiB")
        async with Engine.open(directory, settings) as engine:
            prepared = [None if a is None else await engine.adapter(a) for a in adapters]
            pairs = list(zip(prompts, prepared, strict=True))
            mixed = await asyncio.gather(*(complete(engine, prompt, adapter) for prompt, adapter in pairs))
            alone = [await complete(engine, prompt, adapter) for prompt, adapter in pairs]
            stats = await engine.client.stats()
            assert stats.blocks_free == stats.blocks_total
            assert stats.adapters_pinned == 0
            return alone, mixed

    alone, mixed = asyncio.run(sweep())
    for adapter, prompt, solo, company in zip(adapters, prompts, alone, mixed, strict=True):
        reference, margins = oracle.score(prompt, [s.token for s in solo], adapter)
        assert_close(solo, reference, margins)
        if shards == 1:
            assert_same_bits(solo, company)
        else:
            assert_close(company, solo, margins)
