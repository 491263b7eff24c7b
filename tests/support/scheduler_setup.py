"""Creates schedulers with few blocks, slots and tokens per step, and runs them until all sequences have finished."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from support.fake_model_runner import FakeModelRunner

from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.batch import SchedulerConfig
from motet.engine.schedule.kv_block_manager import BlockManager
from motet.engine.schedule.scheduler import Scheduler

MODULES = ("q_proj", "down_proj")
ENTRIES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(MODULES), st.sampled_from((1, 16, 33))),
    min_size=1,
    max_size=3,
    unique_by=lambda e: e[:2],
)


@dataclass(frozen=True)
class SchedulerSize:
    """The sizes of a scheduler: `pages` per module, and `budget` tokens per step."""

    blocks: int = 6
    block_size: int = 2
    slots: int = 2
    pages: int = 4
    budget: int = 4
    sequences: int = 4
    overlap: bool = False

    def runner(self) -> FakeModelRunner:
        """A new scheduler of this size, with a runner that checks it."""
        blocks = BlockManager(self.blocks, self.block_size)
        slots = AdapterSlots(self.slots, dict.fromkeys(MODULES, self.pages))
        config = SchedulerConfig(self.budget, self.sequences, self.blocks * self.block_size)
        return FakeModelRunner(Scheduler(blocks, slots, config, "engine_id"), self.overlap)


SIZES = st.builds(
    SchedulerSize,
    blocks=st.integers(1, 12),
    block_size=st.integers(1, 4),
    slots=st.integers(1, 3),
    pages=st.integers(3, 6),
    budget=st.integers(1, 9),
    sequences=st.integers(1, 5),
    overlap=st.booleans(),
)


def finish_everything(runner: FakeModelRunner) -> None:
    """Run until all sequences have finished, in a bounded number of steps. Every installation succeeds."""
    longest = sum(runner.limits[id] for id in runner.texts)
    # Every sequence runs once from its start, and again after each preemption; some steps are idle.
    bound = 50 + 20 * longest * (1 + len(runner.texts))
    for _ in range(bound):
        if not runner.texts:
            break
        runner.step(0.5)
        for adapter in sorted(runner.installing):
            runner.report(adapter, works=True)
    for adapter in sorted(runner.installing):
        runner.report(adapter, works=True)
    runner.check_idle()
