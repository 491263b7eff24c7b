"""The engine with too few blocks, one adapter slot and small steps, which must not change the tokens."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from support.equality import Scored, assert_close
from support.peft_oracle import AdapterCase, Oracle, write_adapter
from support.tiny_models import write_model

from motet.core.errors import AdapterRefused, InvalidRequest, Unavailable
from motet.core.messages import AddRequest, PreparedAdapter
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.llm import Engine

T = TypeVar("T")
GREEDY = SamplingParams(max_tokens=90, temperature=0.0, logprobs=0)
# A token of the tiny model takes 4 layers x 2 x 6 heads x 8 x 4 B = 1,536 B: 13 blocks of 32 tokens.
TIGHT = Settings(
    device="cpu",
    adapter_slots=1,
    max_batch_tokens=16,
    kv_memory=str(13 * 32 * 1536),
    max_context=256,
    max_adapter_rank=16,
)
ROOMY = Settings(device="cpu", max_batch_tokens=4096, kv_memory="64MiB")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return write_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of it."""
    base, place = Oracle(model).base, tmp_path_factory.mktemp("adapters")
    cases = [AdapterCase(4, "plain", "all"), AdapterCase(16, "rslora", "qv"), AdapterCase(12, "plain", "some_layers")]
    return [write_adapter(base, case, place / case.name) for case in cases]


def with_engine(model: Path, settings: Settings, work: Callable[[Engine], Awaitable[T]]) -> T:
    """Run `work` on a new engine."""

    async def run() -> T:
        async with Engine.open(model, settings) as engine:
            return await work(engine)

    return asyncio.run(run())


def test_little_memory_does_not_change_the_tokens(model: Path, adapters: list[Path]) -> None:
    prompts = [[(5 * i + j * j) % 259 for j in range(30 + 9 * i)] for i in range(8)]
    drawn = [msgspec.structs.replace(GREEDY, temperature=0.7, top_p=0.9, seed=i) for i in range(8)]

    async def everything(engine: Engine) -> tuple[list[list[Scored]], int]:
        prepared: list[PreparedAdapter | None] = [None, *[await engine.adapter(a) for a in adapters]]
        answers = await asyncio.gather(
            *(
                engine.complete(prompt, params, prepared[i % 4])
                for i, prompt in enumerate(prompts)
                for params in (GREEDY, drawn[i])
            )
        )
        stats = await engine.client.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        return [[Scored(e.token, e.logprob or 0.0) for e in answer] for answer in answers], stats.preemptions

    tight, preemptions = with_engine(model, TIGHT, everything)
    roomy, calm = with_engine(model, ROOMY, everything)
    assert preemptions > 0
    assert calm == 0
    oracle = Oracle(model)
    for number, (pressed, free) in enumerate(zip(tight, roomy, strict=True)):
        if number % 2 == 0:  # greedy: the margins of the choices are known
            adapter = None if (number // 2) % 4 == 0 else adapters[(number // 2) % 4 - 1]
            _, margins = oracle.score(prompts[number // 2], [s.token for s in free], adapter)
            assert_close(pressed, free, margins)
        else:
            assert [s.token for s in pressed] == [s.token for s in free], "the same seed draws the same text"


def test_overlapping_steps_do_not_change_the_tokens(model: Path, adapters: list[Path]) -> None:
    """Each step is launched before the tokens of the last one are read; sequences end, wait and are preempted."""
    prompts = [[(7 * i + j * j) % 259 for j in range(3 + 11 * i)] for i in range(6)]
    params = [
        msgspec.structs.replace(GREEDY, max_tokens=4 + 9 * i, temperature=t, seed=i, frequency_penalty=f)
        for i, (t, f) in enumerate([(0.0, 0.0), (0.7, 0.0), (0.0, 0.8), (0.9, 0.3), (0.0, 0.0), (1.0, 0.0)])
    ]

    async def everything(engine: Engine) -> list[tuple[list[int], str | None]]:
        prepared: list[PreparedAdapter | None] = [None, *[await engine.adapter(a) for a in adapters]]
        requests = [(p, q, prepared[(i + j) % 4]) for i, p in enumerate(prompts) for j, q in enumerate(params)]
        answers = await asyncio.gather(*(engine.complete(*request) for request in requests))
        vectors = [await engine.embed(prompt, "mean", prepared[1]) for prompt in prompts]
        assert len({len(vector) for vector in vectors}) == 1
        stats = await engine.client.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        return [([e.token for e in answer], answer[-1].finish) for answer in answers]

    def settings(overlap: str, size: Settings) -> Settings:
        return dataclasses.replace(size, overlap=overlap, max_sequences=8)

    expected = with_engine(model, settings("off", ROOMY), everything)
    assert with_engine(model, settings("on", ROOMY), everything) == expected
    assert with_engine(model, settings("on", TIGHT), everything) == expected


def test_refused_requests(model: Path, adapters: list[Path], tmp_path: Path) -> None:
    big = write_adapter(Oracle(model).base, AdapterCase(64, "plain", "qv"), tmp_path / "big")

    async def refusals(engine: Engine) -> None:
        with pytest.raises(AdapterRefused, match="rank 64"):
            await engine.adapter(big)
        with pytest.raises(InvalidRequest, match="tokens"):
            await engine.complete([1] * 256, GREEDY)
        with pytest.raises(InvalidRequest, match="token ids"):
            await engine.complete([259], GREEDY)
        with pytest.raises(Unavailable, match="not registered"):
            async for _ in engine.client.generate(AddRequest("x", (1,), GREEDY, adapter="unknown")):
                pass
        # The engine still works.
        assert len(await engine.complete([1], GREEDY, await engine.adapter(adapters[0]))) == 90

    with_engine(model, TIGHT, refusals)


def test_endings(model: Path) -> None:
    async def endings(engine: Engine) -> None:
        prompt = list(range(40))
        free = [e.token for e in await engine.complete(prompt, GREEDY)]
        ending = free[5]
        first = free.index(ending)
        stop = msgspec.structs.replace(GREEDY, eos_token_ids=(ending,))
        events = await engine.complete(prompt, stop)
        assert [e.token for e in events] == free[: first + 1]
        assert (events[-1].finish, events[-1].stop_id) == ("stop", ending)
        ignoring = await engine.complete(prompt, msgspec.structs.replace(stop, ignore_eos=True))
        assert [e.token for e in ignoring] == free
        later = await engine.complete(prompt, msgspec.structs.replace(stop, min_tokens=20))
        assert ending not in [e.token for e in later[:20]]
        long = await engine.complete(prompt, msgspec.structs.replace(GREEDY, max_tokens=10_000))
        assert (len(prompt) + len(long), long[-1].finish) == (256, "length"), "the context is the limit"

    with_engine(model, TIGHT, endings)
