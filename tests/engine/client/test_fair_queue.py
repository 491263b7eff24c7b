"""The queue that flows share: places are never lost or used twice, and no flow waits for all of another's work."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.core.errors import Overloaded
from motet.engine.client import fair_queue
from motet.engine.client.fair_queue import FairQueue


class Clock:
    """Seconds that pass only when work takes them."""

    now = 0.0

    def monotonic(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The queue's clock."""
    clock = Clock()
    monkeypatch.setattr(fair_queue, "time", clock)
    return clock


def order_of(jobs: list[tuple[str, float]], clock: Clock) -> list[str]:
    """The flows in the order in which one place takes (flow, seconds) jobs that all come at once."""
    taken: list[str] = []

    async def work(queue: FairQueue, flow: str, seconds: float) -> None:
        async with queue.acquire(flow):
            taken.append(flow)
            await asyncio.sleep(0)
            clock.now += seconds

    async def main() -> None:
        queue = FairQueue("work done", 1, 1000, 1000)
        await asyncio.gather(*(work(queue, flow, seconds) for flow, seconds in jobs))

    asyncio.run(main())
    return taken


def test_a_single_job_does_not_wait_for_anothers_backlog(clock: Clock) -> None:
    assert order_of([("alice", 1.0)] * 50 + [("bob", 0.1)] * 2, clock)[:4] == ["alice", "bob", "bob", "alice"]


def test_time_is_shared_not_turns(clock: Clock) -> None:
    taken = order_of([("slow", 1.0)] * 10 + [("quick", 0.1)] * 50, clock)
    assert taken[:20].count("slow") <= 3


def test_a_flow_that_was_away_has_no_credit(clock: Clock) -> None:
    """Else it could take every place for as long as it did nothing."""

    async def main() -> list[str]:
        queue, taken = FairQueue("work done", 1, 100, 100), list[str]()

        async def work(flow: str) -> None:
            async with queue.acquire(flow):
                taken.append(flow)
                await asyncio.sleep(0)
                clock.now += 1

        busy = [asyncio.create_task(work("busy")) for _ in range(20)]
        while len(taken) < 10:
            await asyncio.sleep(0)
        late = [asyncio.create_task(work("late")) for _ in range(10)]
        await asyncio.gather(*busy, *late)
        return taken[10:]

    after = asyncio.run(main())
    assert after[:10].count("busy") >= 4


def test_the_room_is_bounded_for_all_and_for_each(clock: Clock) -> None:
    async def main() -> None:
        queue, leave = FairQueue("work done", 1, room=3, room_per_flow=2), asyncio.Event()

        async def stay(flow: str) -> None:
            async with queue.acquire(flow):
                await leave.wait()

        tasks = [asyncio.create_task(stay("alice")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="work done"):
            await stay("alice")
        tasks.append(asyncio.create_task(stay("bob")))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await stay("carol")
        leave.set()
        await asyncio.gather(*tasks)
        await stay("alice")

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(
    places=st.integers(1, 3),
    callers=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.none() | st.integers(0, 6)), min_size=1, max_size=20
    ),
)
def test_places_are_used_once_and_all_come_back(places: int, callers: list[tuple[str, int, int | None]]) -> None:
    """Callers work for some turns of the loop, and may leave at any time, also while they wait."""
    used: set[int] = set()

    async def work(queue: FairQueue, flow: str, turns: int) -> None:
        async with queue.acquire(flow) as index:
            assert index not in used
            used.add(index)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                used.discard(index)

    async def main() -> None:
        queue = FairQueue("work done", places, 100, 100)
        tasks = [asyncio.create_task(work(queue, flow, turns)) for flow, turns, _ in callers]
        for tick in range(8):
            for task, (_, _, leaves) in zip(tasks, callers, strict=True):
                if leaves == tick:
                    task.cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert sorted(queue._free) == list(range(places))
        assert not queue._waiting
        assert not queue._callers

    asyncio.run(main())
    assert not used
