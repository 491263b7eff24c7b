"""Preemption: which sequences make room for others; a preempted sequence is computed again."""

from __future__ import annotations

import pytest
from support.fake_model_runner import make_adapter
from support.scheduler_setup import SchedulerSize, finish_everything

from motet.engine.schedule.admission import STARVATION_SECONDS


def test_preempted_sequence_is_recomputed_and_continues() -> None:
    runner = SchedulerSize(blocks=4, block_size=2, budget=8).runner()
    ids = [runner.submit(2, 6, None) for _ in range(2)]
    for _ in range(40):
        runner.step(0.0)
    assert set(ids) == runner.finished
    assert runner.scheduler.preemptions > 0
    runner.check_idle()


def test_sequences_that_do_not_fit_are_skipped_cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The available blocks are computed once per step and priority, not for every waiting sequence."""
    runner = SchedulerSize(blocks=20, block_size=2, budget=40, sequences=8).runner()
    runner.submit(30, 8, None)
    runner.step(0.0)
    for _ in range(50):
        runner.submit(30, 1, None)
    scheduler, calls = runner.scheduler, []
    worse = scheduler._preemption.worse
    monkeypatch.setattr(scheduler._preemption, "worse", lambda sequence: calls.append(sequence) or worse(sequence))
    runner.step(0.0)
    assert len(scheduler.waiting) == 50
    assert len(calls) <= 2
    finish_everything(runner)


def test_a_better_priority_takes_the_place_of_a_worse_one() -> None:
    runner = SchedulerSize(blocks=40, sequences=2, budget=8).runner()
    slow = [runner.submit(2, 12, None, priority=9) for _ in range(2)]
    runner.step(0.0)
    live = runner.submit(2, 2, None)
    runner.step(0.0)
    assert [s.id for s in runner.scheduler.running] == [slow[0], live]
    assert runner.scheduler.preemptions == 1
    finish_everything(runner)


def test_blocks_are_taken_from_a_worse_priority_and_only_if_that_is_enough() -> None:
    runner = SchedulerSize(blocks=10, block_size=2, sequences=4, budget=20).runner()
    batch = runner.submit(8, 8, None, priority=9)
    runner.step(0.0)
    live = runner.submit(10, 2, None)
    runner.step(0.0)
    assert [s.id for s in runner.scheduler.running] == [live]
    huge = runner.submit(17, 2, None)
    runner.step(0.0)
    assert runner.scheduler.preemptions == 1
    finish_everything(runner)
    assert {batch, live, huge} <= runner.finished


def test_an_adapters_slot_is_taken_from_a_worse_priority() -> None:
    runner = SchedulerSize(blocks=40, slots=1, budget=8).runner()
    for name in ("batch", "live"):
        runner.scheduler.register(make_adapter(name, [(0, "q_proj", 16)]))
    runner.submit(2, 30, "batch", priority=9)
    runner.step(0.0)
    runner.report("batch", works=True)
    runner.step(0.0)
    live = runner.submit(2, 2, "live")
    runner.step(0.0)
    runner.report("live", works=True)
    for _ in range(3):
        runner.step(0.0)
    assert live in runner.finished
    finish_everything(runner)


def test_a_starving_batch_delays_no_better_priority() -> None:
    runner = SchedulerSize(blocks=12, block_size=2, sequences=4, budget=24).runner()
    runner.submit(22, 1, None, priority=9)
    runner.submit(22, 1, None, priority=9)
    runner.step(0.0)
    runner.step(STARVATION_SECONDS * 2)
    live = runner.submit(4, 2, None)
    runner.step(0.0)
    assert live in {s.id for s in runner.scheduler.running}
    finish_everything(runner)
