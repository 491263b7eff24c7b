"""Draining: an adapter in use makes room for the adapter of a starving sequence."""

from __future__ import annotations

import pytest
from support.fake_model_runner import make_adapter
from support.scheduler_setup import SchedulerSize

from motet.engine.schedule.admission import STARVATION_SECONDS


@pytest.mark.parametrize("small_first", [True, False])
def test_draining_goes_on_until_there_is_room(small_first: bool) -> None:
    """A large adapter needs the pages of two others, of which one is unused and one always in use."""
    runner = SchedulerSize(slots=3, pages=4, blocks=20).runner()
    runner.scheduler.register(make_adapter("idle", [(0, "q_proj", 16)]))
    runner.scheduler.register(make_adapter("busy", [(0, "q_proj", 32)]))
    runner.scheduler.register(make_adapter("large", [(0, "q_proj", 64)]))
    names = ["idle", "busy"] if small_first else ["busy", "idle"]
    for name in names:
        runner.submit(1, 1, name)
    runner.step(0.0)
    for name in names:
        runner.report(name, works=True)
    runner.submit(1, 9, "busy")
    large = runner.submit(1, 1, "large")
    for _ in range(60):
        runner.submit(1, 5, "busy")
        runner.step(STARVATION_SECONDS / 4)
        if "large" in runner.installing:
            runner.report("large", works=True)
    assert large in runner.finished


def test_a_drain_outlives_steps_that_start_no_sequence() -> None:
    """Long prompts fill every second step; the drained adapter must start no sequences meanwhile."""
    runner = SchedulerSize(slots=1, blocks=60, budget=4, sequences=8).runner()
    runner.scheduler.register(make_adapter("hot", [(0, "q_proj", 16)]))
    runner.scheduler.register(make_adapter("cold", [(0, "q_proj", 16)]))
    cold = None
    for turn in range(300):
        if len(runner.texts) < 10:
            runner.submit(7, 2, "hot")
        if turn == 10:
            cold = runner.submit(2, 1, "cold")
        runner.step(STARVATION_SECONDS / 4)
        for adapter in sorted(runner.installing):
            runner.report(adapter, works=True)
    assert cold in runner.finished


def test_room_that_is_drained_goes_to_no_other_adapter() -> None:
    """A large adapter needs the whole pool, and small cold adapters would use every page that becomes free."""
    runner = SchedulerSize(slots=4, pages=4, blocks=60, budget=8, sequences=8).runner()
    runner.scheduler.register(make_adapter("large", [(0, "q_proj", 64)]))
    large = None
    for turn in range(400):
        if len(runner.texts) < 10:
            runner.scheduler.register(make_adapter(f"small{turn}", [(0, "q_proj", 16)]))
            runner.submit(1, 3 + turn % 5, f"small{turn}")
        if turn == 10:
            large = runner.submit(1, 1, "large")
        runner.step(STARVATION_SECONDS / 4)
        for adapter in sorted(runner.installing):
            runner.report(adapter, works=True)
    assert large in runner.finished
