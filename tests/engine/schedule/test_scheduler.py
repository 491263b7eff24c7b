"""The scheduler with any order of arrivals, aborts and installations: correct plans, no leak, no starvation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.fake_model_runner import make_adapter
from support.scheduler_setup import ENTRIES, SIZES, SchedulerSize, finish_everything

from motet.core.errors import AdapterRefused
from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams


class Scheduling(RuleBasedStateMachine):
    """Any event may happen between steps; in the end all sequences that were not aborted finish."""

    @initialize(size=SIZES, adapters=st.lists(ENTRIES, max_size=5))
    def make(self, size: SchedulerSize, adapters: list[list[tuple[int, str, int]]]) -> None:
        self.size = size
        self.runner = size.runner()
        self.adapters: list[str | None] = [None]
        for i, entries in enumerate(adapters):
            adapter = make_adapter(f"a{i}", entries)
            try:
                self.runner.scheduler.register(adapter)
            except AdapterRefused:
                assert not self.runner.scheduler.is_registered(adapter.fingerprint)
            else:
                self.adapters.append(adapter.fingerprint)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        context = self.size.blocks * self.size.block_size
        if context < 2:
            return
        prompt = data.draw(st.integers(1, context - 1))
        output = data.draw(st.integers(1, context - prompt))
        n, priority = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 1))
        group = data.draw(st.sampled_from(("one:a", "one:b", "two:a")))
        self.runner.submit(prompt, output, data.draw(st.sampled_from(self.adapters)), n, priority=priority, group=group)

    @precondition(lambda self: self.runner.texts)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.runner.abort(data.draw(st.sampled_from(sorted(self.runner.texts))))

    @precondition(lambda self: self.runner.installing)
    @rule(data=st.data(), works=st.booleans())
    def install(self, data: st.DataObject, works: bool) -> None:
        self.runner.report(data.draw(st.sampled_from(sorted(self.runner.installing))), works)

    @rule(steps=st.integers(1, 4), seconds=st.sampled_from((0.0, 0.1, 3.0)))
    def run(self, steps: int, seconds: float) -> None:
        for _ in range(steps):
            self.runner.step(seconds)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            finish_everything(self.runner)


Scheduling.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestScheduling = Scheduling.TestCase


@settings(deadline=None, max_examples=30)
@given(
    size=SIZES.filter(lambda size: size.blocks * size.block_size >= 8),
    crowd=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=6),
    rank_rows=st.sampled_from((16, 48)),
)
def test_a_cold_adapter_does_not_starve_while_others_keep_arriving(
    size: SchedulerSize, crowd: list[tuple[int, int, int]], rank_rows: int
) -> None:
    """A long request with a large cold adapter starts although short ones keep arriving."""
    runner = size.runner()
    for i in range(6):
        runner.scheduler.register(make_adapter(f"hot{i}", [(0, "q_proj", 16)]))
    runner.scheduler.register(make_adapter("cold", [(0, "q_proj", rank_rows)]))
    starver = None
    for turn in range(2000):
        if len(runner.texts) < 12:
            prompt, output, hot = crowd[turn % len(crowd)]
            runner.submit(min(prompt, size.blocks * size.block_size - output), output, f"hot{hot}")
        if turn == 20:
            starver = runner.submit(4, 4, "cold")
        runner.step(0.1)
        for adapter in sorted(runner.installing):
            runner.report(adapter, works=True)
        if starver in runner.finished:
            return
    pytest.fail("the cold adapter's request never ran")


def test_ending_an_unknown_id_does_nothing() -> None:
    runner = SchedulerSize().runner()
    assert runner.scheduler.finish("never heard of") is None
    id = runner.submit(1, 1, None)
    runner.abort(id)
    assert runner.scheduler.finish(id) is None


def test_tokens_of_an_ended_sequence_are_dropped() -> None:
    scheduler = SchedulerSize().runner().scheduler
    sequence = scheduler.add(AddRequest("a", (1, 2), SamplingParams(max_tokens=4)), b"", 0.0)
    step = scheduler.schedule(0.0)
    assert step is not None
    scheduler.finish("a")
    scheduler.record_samples(step, [7])
    assert sequence.output == []


def test_a_group_is_found_and_the_start_time_is_recorded() -> None:
    runner = SchedulerSize(blocks=40, sequences=2).runner()
    first = runner.submit(2, 9, None, n=2)
    runner.submit(2, 1, None)
    runner.step(0.5)
    assert sorted(s.id for s in runner.scheduler.in_group(first)) == ["s0", "s1"]
    assert runner.scheduler.running[0].start_time == 0.5
    finish_everything(runner)
