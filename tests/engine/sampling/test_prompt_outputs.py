"""Prompt logprobs and pooled vectors against transformers and PEFT; choices, cancelled groups and queue times."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.equality import TOLERANCE
from support.peft_oracle import AdapterCase, Oracle, write_adapter
from support.tiny_models import write_model

from motet.core.errors import Conflict
from motet.core.messages import AddRequest, PreparedAdapter, TokenEvent
from motet.core.output_format import GrammarSpec
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.llm import Engine

PROMPTS = [[(7 * n + 13 * i + i * i) % 259 for i in range(5 + 23 * n)] for n in range(4)]
ENGINES = {
    "whole": Settings(device="cpu", max_batch_tokens=4096, kv_memory="64MiB"),
    "chunked": Settings(device="cpu", max_batch_tokens=16, kv_memory="64MiB"),
    "sharded": Settings(device="cpu", shards=2, max_batch_tokens=32, kv_memory="64MiB"),
}


class Reference:
    """transformers + PEFT: logits and last hidden states of whole prompts."""

    def __init__(self, model: Path) -> None:
        self.oracle = Oracle(model)

    @torch.no_grad()
    def run(self, prompt: list[int], adapter: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(logprobs [tokens, vocab], hidden states after the final norm [tokens, hidden])."""
        model = self.oracle.base if adapter is None else PeftModel.from_pretrained(self.oracle.base, str(adapter))
        found = model.eval()(torch.tensor([prompt]), output_hidden_states=True)
        if adapter is not None:
            self.oracle.base = model.unload()
        return torch.log_softmax(found.logits[0].float(), -1), found.hidden_states[-1][0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return write_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it, on every linear layer."""
    place = tmp_path_factory.mktemp("adapter")
    return write_adapter(Oracle(model).base, AdapterCase(8, "patterns", "all"), place / "a")


def request(id: str, prompt: list[int], adapter: PreparedAdapter | None, **params: object) -> AddRequest:
    """A greedy request."""
    options = SamplingParams(temperature=0.0, **{"max_tokens": 3, **params})  # type: ignore[arg-type]
    return AddRequest(id, tuple(prompt), options, adapter.fingerprint if adapter else None, group=id)


async def run(engine: Engine, submit: AddRequest) -> list[TokenEvent]:
    return [event async for events in engine.client.generate(submit) for event in events]


@pytest.mark.parametrize("kind", ENGINES)
def test_prompt_logprobs_and_vectors_equal_the_reference(kind: str, model: Path, adapter: Path) -> None:
    pairs = [(prompt, directory) for prompt in PROMPTS for directory in (None, adapter)]

    async def ours() -> list[tuple[list[TokenEvent], tuple[float, ...], tuple[float, ...]]]:
        async with Engine.open(model, ENGINES[kind]) as engine:
            prepared = await engine.adapter(adapter)

            async def all_of(n: int) -> tuple[list[TokenEvent], tuple[float, ...], tuple[float, ...]]:
                prompt, directory = pairs[n]
                named = prepared if directory else None
                return await asyncio.gather(  # type: ignore[return-value]
                    run(engine, request(f"s{n}", prompt, named, prompt_logprobs=2)),
                    engine.embed(prompt, "last", named),
                    engine.embed(prompt, "mean", named),
                )

            found = await asyncio.gather(*map(all_of, range(len(pairs))))
            stats = await engine.client.stats()
            assert (stats.blocks_free, stats.running) == (stats.blocks_total, 0)
            assert stats.generated_tokens >= 3 * len(pairs)
            return found

    reference = Reference(model)
    for (prompt, directory), (events, last, mean) in zip(pairs, asyncio.run(ours()), strict=True):
        logprobs, hidden = reference.run(prompt, directory)
        assert [score.token for score in events[0].prompt_logprobs] == prompt
        assert events[0].prompt_logprobs[0].logprob is None
        assert all(event.prompt_logprobs == () for event in events[1:])
        for position, score in enumerate(events[0].prompt_logprobs[1:], start=1):
            row = logprobs[position - 1]
            assert score.logprob == pytest.approx(float(row[score.token]), abs=TOLERANCE)
            assert [p for _, p in score.top] == pytest.approx(row.topk(2).values.tolist(), abs=TOLERANCE)
        assert last == pytest.approx(hidden[-1].tolist(), abs=TOLERANCE)
        assert mean == pytest.approx(hidden.mean(dim=0).tolist(), abs=TOLERANCE)


def test_choices_equal_single_requests(model: Path, adapter: Path) -> None:
    """Choices that share the first choice's blocks have the same tokens as alone."""
    prompt = PROMPTS[3]

    async def ours() -> tuple[list[list[TokenEvent]], list[list[TokenEvent]]]:
        async with Engine.open(model, ENGINES["chunked"]) as engine:
            fingerprint = (await engine.adapter(adapter)).fingerprint

            def choice(name: str, i: int, prefix_of: str | None = None) -> AddRequest:
                params = SamplingParams(max_tokens=20, temperature=1.0, seed=i, logprobs=0)
                return AddRequest(f"{name}{i}", tuple(prompt), params, fingerprint, prefix_of=prefix_of)

            first = await engine.client.stats()
            together = await asyncio.gather(
                *(run(engine, choice("choice", i, "choice0" if i else None)) for i in range(4))
            )
            computed = (await engine.client.stats()).prompt_tokens - first.prompt_tokens
            assert computed < 2 * len(prompt), "the prompt was computed once, and its last block by each"
            return together, [await run(engine, choice("alone", i)) for i in range(4)]

    together, alone = asyncio.run(ours())
    for one, other in zip(together, alone, strict=True):
        assert [e.token for e in one] == [e.token for e in other]
        # The prompt was split at another position, so the last bits may differ.
        assert [e.logprob for e in one] == pytest.approx([e.logprob for e in other], abs=TOLERANCE)
    assert len({tuple(e.token for e in events) for events in together}) == 4, "choices truly differ"


def test_a_cancelled_group_ends_running_waiting_and_compiling_sequences(model: Path) -> None:
    settings = Settings(device="cpu", max_sequences=1, kv_memory="64MiB")
    grammar = GrammarSpec("regex", "[a-z]{400}")

    async def cancelled(engine: Engine) -> None:
        long = SamplingParams(max_tokens=400, ignore_eos=True)
        kinds = [AddRequest("run", (1, 2), long, group="g"), AddRequest("wait", (1, 2), long, group="g")]
        kinds.append(AddRequest("compile", (1, 2), long, grammar=grammar, group="g"))
        tasks = [asyncio.create_task(run(engine, submit)) for submit in kinds]
        other = asyncio.create_task(run(engine, AddRequest("other", (1, 2), SamplingParams(max_tokens=3))))
        await asyncio.sleep(0.3)
        assert await engine.client.cancel("g") >= 2
        results = await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert [type(result) for result in results] == [Conflict, Conflict]
        assert [result.code for result in results if isinstance(result, Conflict)] == ["request_cancelled"] * 2
        await asyncio.gather(tasks[2], return_exceptions=True)
        assert len(await other) <= 3
        assert await engine.client.cancel("g") == 0
        stats = await engine.client.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)

    async def main() -> None:
        async with Engine.open(model, settings) as engine:
            await cancelled(engine)

    asyncio.run(main())


def test_queue_seconds_are_sent_once(model: Path) -> None:
    async def main() -> None:
        async with Engine.open(model, Settings(device="cpu", max_sequences=1, kv_memory="64MiB")) as engine:
            events = await asyncio.gather(*(run(engine, request(f"s{n}", PROMPTS[0], None)) for n in range(2)))
            assert all(e.queue_seconds == 0 for answer in events for e in answer[1:])
            assert max(answer[0].queue_seconds for answer in events) > 0

    asyncio.run(main())
