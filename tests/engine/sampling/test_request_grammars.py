"""Grammars in a running engine: a slow one affects its own requests only, and batching does not change the text."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest
import torch
from support.scheduler_setup import SchedulerSize
from support.tiny_chat_model import write_chat_model

from motet.core.errors import InvalidRequest, Overloaded
from motet.core.messages import AbortRequest, AddRequest, TokenEvent
from motet.core.model_source import ModelInfo
from motet.core.output_format import GrammarSpec
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine import engine_core as core
from motet.engine.distributed.transport import EngineSockets
from motet.engine.llm import Engine
from motet.engine.model_runner import ModelRunner
from motet.engine.staging import StagingBuffer

T = TypeVar("T")
SETTINGS = Settings(device="cpu", kv_memory="64MiB", max_context=256)
PROMPT = tuple(b"The sea")
RULES = 600
COSTLY = GrammarSpec(
    "lark",
    "start: /[0-9]/ s\ns: "
    + " | ".join(f"s{i}" for i in range(RULES))
    + "\n"
    + "\n".join(f"s{i}: /[a-z ]/ s{(i * 7 + 1) % RULES} | /[a-z ]/" for i in range(RULES)),
)
SCHEMA = GrammarSpec(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "tags": {"type": "array", "maxItems": 3}},
            "required": ["name", "tags"],
        }
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokens are bytes; its end-of-text id is not a byte."""
    directory = write_chat_model(tmp_path_factory.mktemp("model"))
    for name in ("config.json", "generation_config.json"):
        if (path := directory / name).is_file():
            path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 257}))
    return directory


def with_engine(model: Path, work: Callable[[Engine], Awaitable[T]]) -> T:
    """Run `work` on a new engine."""

    async def run() -> T:
        async with Engine.open(model, SETTINGS) as engine:
            return await work(engine)

    return asyncio.run(run())


async def ask(engine: Engine, id: str, grammar: GrammarSpec | None, seed: int = 0, tokens: int = 60) -> list[int]:
    """The token ids of a request."""
    return [event.token async for batch in events(engine, id, grammar, seed, tokens) for event in batch]


def events(
    engine: Engine, id: str, grammar: GrammarSpec | None, seed: int, tokens: int
) -> AsyncIterator[tuple[TokenEvent, ...]]:
    """The events of a request."""
    params = SamplingParams(max_tokens=tokens, temperature=1.5, seed=seed)
    return engine.client.generate(AddRequest(id, PROMPT, params, grammar=grammar))


def test_a_slow_grammar_fails_its_own_requests_while_others_continue(model: Path) -> None:
    async def attack(engine: Engine) -> float:
        await ask(engine, "warm", SCHEMA, tokens=4)
        costly = [asyncio.create_task(ask(engine, f"costly{i}", COSTLY, i)) for i in range(48)]
        longest, last = 0.0, time.monotonic()
        async for _ in events(engine, "ordinary", None, 1, 200):
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        failures = await asyncio.gather(*costly, return_exceptions=True)
        assert {type(f) for f in failures} == {InvalidRequest}
        assert {(f.code, f.param) for f in failures if isinstance(f, InvalidRequest)} == {
            ("invalid_grammar", "response_format")
        }
        with pytest.raises(InvalidRequest, match="refused"):  # at once, not after some tokens
            await ask(engine, "again", COSTLY)
        assert len(await ask(engine, "good", GrammarSpec("regex", "[0-9]{7}"))) == 7
        return longest

    assert with_engine(model, attack) < 1.0


def test_batching_does_not_change_the_text(model: Path) -> None:
    """Sequences that are blocked for some steps, beside slow grammars and free text, have the same tokens as alone."""
    grammars = [SCHEMA, GrammarSpec("regex", "[a-f]{20,50}"), None]

    async def both(engine: Engine) -> tuple[list[list[int]], list[list[int]]]:
        alone = [await ask(engine, f"alone{i}", grammars[i % 3], i) for i in range(12)]
        costly = [asyncio.create_task(ask(engine, f"costly{i}", COSTLY, i)) for i in range(8)]
        together = await asyncio.gather(*(ask(engine, f"with{i}", grammars[i % 3], i) for i in range(12)))
        await asyncio.gather(*costly, return_exceptions=True)
        stats = await engine.client.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        return alone, together

    alone, together = with_engine(model, both)
    assert alone == together
    assert all(len(text) >= 20 for text in alone[1::3])


def test_requests_whose_grammar_is_compiled_count_as_waiting(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "MAX_WAITING", 3)
    scheduler = SchedulerSize().runner().scheduler
    sockets = EngineSockets(f"ipc://{tmp_path}/engine", f"ipc://{tmp_path}/ranks", 0)
    info = ModelInfo("tiny", "llama", str(model), 259, 256, "float32", 1, (2,), "cpu", 48)
    cpu = torch.device("cpu")
    runner = SimpleNamespace(pool=None, directory=model, device=cpu, staging=StagingBuffer(1 << 16, cpu))
    engine = core.EngineCore(cast(ModelRunner, runner), info, scheduler, sockets, overlap=False)
    requests = [AddRequest(f"r{i}", PROMPT, SamplingParams(max_tokens=1), grammar=SCHEMA) for i in range(4)]
    for request in requests[:3]:
        assert engine._refusal(request) is None
        engine._add(b"client", request)
    refused = engine._refusal(requests[3])
    assert refused is not None
    assert refused.type == Overloaded.type
    engine._handle(b"client", AbortRequest("r0"))
    assert engine._refusal(requests[3]) is None
    engine._grammars.close()
    sockets.close()
