"""Recorded decode steps: fixed shapes and addresses give the same bits as steps of their own shapes."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest
import torch
from support.recording import record
from support.sampling_checks import row, sample
from support.tiny_models import write_model

from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.decode_graphs import DecodeGraphs, Recording, graph_sizes
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.model_runner import ModelRunner
from motet.engine.sampling.sampler import Sampler
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement, SequencePlan, StepPlan

CPU = torch.device("cpu")
SETTINGS = Settings(device="cpu", adapter_slots=3, max_sequences=8, kv_memory="64MiB", max_adapter_rank=16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with sliding windows."""
    return write_model("qwen3", tmp_path_factory.mktemp("model"))


def new_runner(directory: Path) -> ModelRunner:
    """A model runner with three random adapters, the same in every one."""
    runner = ModelRunner(EngineConfig.from_settings(SETTINGS, directory), ShardGroup(), CPU)
    random = torch.Generator().manual_seed(5)
    for slot, rank in enumerate((4, 16, 9)):
        placements, tensors = [], {}
        for layer, linears in enumerate(runner.pool.layers):
            for fused in linears.values():
                for part, name in enumerate(fused.parts):
                    placements.append(Placement(layer, name, (slot * runner.config.num_layers + layer,), rank, 0.5))
                    inputs, outputs = fused.a[part].shape[-1], fused.b[part].shape[-1]
                    tensors[f"{layer}.{name}.A"] = torch.randn(rank, inputs, generator=random)
                    tensors[f"{layer}.{name}.B"] = torch.randn(rank, outputs, generator=random) * 0.1
        install = InstallAdapter(slot, str(slot), (), tuple(placements))
        runner.pool.copy(install, tensors)
        runner.pool.point(install)
    return runner


def plan(*sequences: tuple[tuple[int, ...], int, int, int | None]) -> StepPlan:
    """A step of (tokens, start, block, slot) sequences, which all sample."""
    chunks, first = [], 0
    for tokens, _, _, slot in sequences:
        if slot is not None:
            chunks.append(LoraChunk(slot, first, len(tokens)))
        first += len(tokens)
    shares = tuple(SequencePlan(tokens, start, (block,), True) for tokens, start, block, _ in sequences)
    return StepPlan("", 0, shares, tuple(chunks))


def steps() -> list[StepPlan]:
    """Prompts, then decode steps with changing sequences, adapters and sampled ids."""
    prompts = plan(((5, 6, 7), 0, 0, 0), ((9, 8), 0, 3, None), ((1,), 0, 2, 1), ((4, 4, 4, 4), 0, 7, 2))
    mixed = plan(((-1,), 3, 0, 0), ((-2,), 2, 3, None), ((-3,), 1, 2, 1), ((-4,), 4, 7, 2))
    fewer = plan(((-3,), 2, 2, 1), ((-1,), 4, 0, 0))
    other = plan(((3,), 5, 0, 0))
    base = plan(((-1,), 3, 3, None), ((6,), 5, 7, None), ((2,), 0, 9, None))
    return [prompts, mixed, fewer, other, base, plan(((-1,), 1, 9, 2), ((-3, 5), 4, 3, 0)), other]


def test_recorded_steps_have_the_same_bits(directory: Path) -> None:
    eager, recorded = new_runner(directory), new_runner(directory)
    progress: list[tuple[int, int]] = []
    recorded.record_graphs([1, 2, 4, 8], record, lambda done, total: progress.append((done, total)))
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    replayed = 0
    for number, step in enumerate(steps()):
        sampled = torch.tensor([11 * number + row for row in range(8)], dtype=torch.int32)
        results = []
        for runner in (eager, recorded):
            staged = runner.stage(step)
            replayed += bool(staged.graph_rows)
            logits = runner.execute(staged).logits
            assert logits is not None
            results.append(logits.clone())
            runner.store_samples(len(logits), sampled[: len(logits)])
        assert torch.equal(*results), f"step {number}"
    assert replayed == 5, "all but the prompts and the mixed step are replayed"


def test_recorded_draws_are_the_eager_ones(directory: Path) -> None:
    """The draw is recorded on the logits of recorded steps; greedy steps and logprobs are sampled eagerly from them."""
    drawing = SamplingParams(max_tokens=99, temperature=0.8, top_p=0.9, seed=4)
    kinds = [drawing, SamplingParams(max_tokens=99, temperature=0.0), SamplingParams(max_tokens=99, top_k=3, seed=7)]
    runner = new_runner(directory)
    recorded, eager = (Sampler(runner.config.vocab_size, runner.device) for _ in range(2))
    runner.record_graphs([2, 4], record, lambda done, total: None)
    for rows, logits in runner.graphs.outputs():
        runner.stage(StepPlan("", 0, (), ()), rows)
        recorded.record(logits, runner.staging, record)
    used = []
    for params in (kinds, kinds[:1], kinds[1:2], [msgspec.structs.replace(drawing, logprobs=2), *kinds[:2]]):
        step = plan(*[((3 + i,), i, i, i % 2 or None) for i in range(len(params))])
        rows = [row(p, id=str(i)) for i, p in enumerate(params)]
        staged = runner.stage(step)
        batch = recorded.stage(rows, runner.staging, staged.graph_rows)
        logits = runner.execute(staged).logits
        assert logits is not None
        expected = sample(eager, logits.clone(), rows, {})
        assert recorded(logits, batch, {}).read() == expected
        used.append(batch.recorded_rows)
    assert used == [4, 2, 0, 0]


def test_a_plan_gets_the_smallest_graph_that_it_fits() -> None:
    graphs = DecodeGraphs()
    decode = plan(((1,), 4, 0, None), ((2,), 4, 1, None), ((3,), 4, 2, None))
    assert graphs.size_for(decode) == 0
    for rows in (8, 2, 4):
        graphs.add(rows, Recording(lambda: None, None))
    assert graphs.size_for(decode) == 4
    assert graphs.size_for(plan(*[((1,), 0, i, None) for i in range(9)])) == 0
    assert graphs.size_for(plan(((1, 2), 0, 0, None))) == 0
    assert graphs.size_for(StepPlan("", 0, (SequencePlan((1,), 0, (0,), False, pooling=True),), ())) == 0


@pytest.mark.parametrize("largest", [1, 3, 8, 100, 256, 1000])
def test_the_ladder_ends_at_the_most_sequences(largest: int) -> None:
    sizes = graph_sizes(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == largest
    assert all(wide <= max(2 * narrow, narrow + 64) for narrow, wide in itertools.pairwise(sizes))
