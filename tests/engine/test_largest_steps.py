"""The largest steps: as large as the settings allow, and a real runner and sampler can run them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_models import COMMON, write_model

from motet.core.settings import Settings
from motet.engine.decode_graphs import is_decode
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.largest_steps import largest_steps, plain_decodes
from motet.engine.model_runner import ModelRunner
from motet.engine.sampling.sampler import Sampler
from motet.engine.sampling.sampling_batch import is_capturable
from motet.engine.schedule.batch import SchedulerConfig


@pytest.mark.parametrize(
    ("config", "tokens", "rows"),
    [
        (SchedulerConfig(2048, 256, 8192), 2048, 256),
        (SchedulerConfig(2048, 3, 8192), 2048, 3),
        (SchedulerConfig(16, 256, 8192), 16, 16),
        (SchedulerConfig(300, 256, 8192), 300, 256),
        (SchedulerConfig(4096, 2, 512), 1024, 2),
    ],
)
def test_they_are_as_large_as_the_settings_allow(config: SchedulerConfig, tokens: int, rows: int) -> None:
    prompts, decodes = largest_steps(config, 256, 2)
    lengths = [len(s.tokens) for s in prompts.plan.sequences]
    assert sum(lengths) == tokens
    assert lengths == sorted(lengths), "single tokens come first"
    assert max(lengths) <= config.max_context
    assert [len(s.tokens) for s in decodes.plan.sequences] == [1] * rows
    for step in (prompts, decodes):
        plan = step.plan
        assert len(plan.sequences) == len(step.rows) == rows
        assert all(s.sample and set(s.block_table) == {0} for s in plan.sequences)
        assert all(len(s.block_table) * 256 >= len(s.tokens) for s in plan.sequences)
        covered = [row for chunk in plan.lora for row in range(chunk.start, chunk.start + chunk.length)]
        assert covered == list(range(sum(len(s.tokens) for s in plan.sequences)))
        assert {chunk.slot for chunk in plan.lora} == set(range(min(2, rows)))


def test_plain_decodes_can_be_graphs() -> None:
    step = plain_decodes(SchedulerConfig(2048, 256, 8192))
    assert len(step.rows) == len(step.plan.sequences) == 256
    assert all(map(is_decode, step.plan.sequences))
    assert all(map(is_capturable, step.rows))


def test_a_runner_runs_them_and_samples_in_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where nothing is measured: it shows that the made-up plans and requests are complete."""
    sampled = []

    class RecordingSampler(Sampler):
        def __call__(self, *arguments):  # type: ignore[no-untyped-def]
            rows = super().__call__(*arguments)
            sampled.append([(0 <= row.token < COMMON["vocab_size"], len(row.top)) for row in rows.read()])
            return rows

    monkeypatch.setattr("motet.engine.model_runner.Sampler", RecordingSampler)
    settings = Settings(device="cpu", shards=1, kv_memory="4MiB", max_batch_tokens=100, max_sequences=9)
    config = EngineConfig.from_settings(settings, write_model("llama", tmp_path / "model"))
    runner = ModelRunner(config, ShardGroup(), torch.device("cpu"))
    assert sampled == [], "only a GPU's memory is measured"
    runner.run_largest_steps(SchedulerConfig(runner.max_batch_tokens, 9, runner.capacity.max_context), 32)
    assert sampled == [[(True, 20)] * 9] * 2
