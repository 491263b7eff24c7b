"""The scheduler under every order of arrivals, aborts and installations: correct plans, no leak, no starvation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.fake_model_runner import make_adapter
from support.scheduler_setup import ENTRIES, ROOMS, Room, finish_everything

from motet.core.errors import AdapterRefused
from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.schedule.admission import STARVATION_SECONDS


class Scheduling(RuleBasedStateMachine):
    """Anything may happen between steps; in the end everything that was not aborted finishes."""

    @initialize(room=ROOMS, adapters=st.lists(ENTRIES, max_size=5))
    def make(self, room: Room, adapters: list[list[tuple[int, str, int]]]) -> None:
        self.room = room
        self.rank = room.rank()
        self.adapters: list[str | None] = [None]
        for i, entries in enumerate(adapters):
            adapter = make_adapter(f"a{i}", entries)
            try:
                self.rank.scheduler.register(adapter)
            except AdapterRefused:
                assert not self.rank.scheduler.is_registered(adapter.fingerprint)
            else:
                self.adapters.append(adapter.fingerprint)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        context = self.room.blocks * self.room.block_size
        if context < 2:
            return
        prompt = data.draw(st.integers(1, context - 1))
        output = data.draw(st.integers(1, context - prompt))
        n, priority = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 1))
        group = data.draw(st.sampled_from(("one:a", "one:b", "two:a")))
        self.rank.submit(prompt, output, data.draw(st.sampled_from(self.adapters)), n, priority=priority, group=group)

    @precondition(lambda self: self.rank.texts)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.rank.abort(data.draw(st.sampled_from(sorted(self.rank.texts))))

    @precondition(lambda self: self.rank.installing)
    @rule(data=st.data(), works=st.booleans())
    def install(self, data: st.DataObject, works: bool) -> None:
        self.rank.report(data.draw(st.sampled_from(sorted(self.rank.installing))), works)

    @rule(steps=st.integers(1, 4), seconds=st.sampled_from((0.0, 0.1, 3.0)))
    def run(self, steps: int, seconds: float) -> None:
        for _ in range(steps):
            self.rank.step(seconds)

    def teardown(self) -> None:
        if hasattr(self, "rank"):
            finish_everything(self.rank)


Scheduling.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestScheduling = Scheduling.TestCase


@settings(deadline=None, max_examples=60)
@given(
    room=ROOMS.filter(lambda room: room.blocks * room.block_size >= 8),
    crowd=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=6),
    rank_rows=st.sampled_from((16, 48)),
)
def test_nobody_starves_while_others_keep_arriving(
    room: Room, crowd: list[tuple[int, int, int]], rank_rows: int
) -> None:
    """A long request with a large cold adapter gets its turn although short ones never stop coming."""
    rank = room.rank()
    for i in range(6):
        rank.scheduler.register(make_adapter(f"hot{i}", [(0, "q_proj", 16)]))
    rank.scheduler.register(make_adapter("cold", [(0, "q_proj", rank_rows)]))
    starver = None
    for turn in range(2000):
        if len(rank.texts) < 12:
            prompt, output, hot = crowd[turn % len(crowd)]
            rank.submit(min(prompt, room.blocks * room.block_size - output), output, f"hot{hot}")
        if turn == 20:
            starver = rank.submit(4, 4, "cold")
        rank.step(0.1)
        for adapter in sorted(rank.installing):
            rank.report(adapter, works=True)
        if starver in rank.finished:
            return
    pytest.fail("the cold adapter's request never ran")


def test_preempted_sequence_is_recomputed_and_goes_on() -> None:
    rank = Room(blocks=4, block_size=2, budget=8).rank()
    ids = [rank.submit(2, 6, None) for _ in range(2)]
    for _ in range(40):
        rank.step(0.0)
    assert set(ids) == rank.finished
    assert rank.scheduler.preemptions > 0
    rank.check_idle()


def test_a_long_prompt_does_not_stop_those_who_have_started() -> None:
    rank = Room(blocks=40, budget=8).rank()
    rank.submit(1, 10, None)
    rank.step(0.0)
    long = rank.submit(60, 1, None)
    lengths = []
    while long not in rank.finished:
        rank.step(0.0)
        lengths.append(len(rank.texts.get("s0", ())))
    assert lengths[:8] == list(range(3, 11)), "one token a step, whatever arrives"


def test_cold_adapter_delays_nobody_else() -> None:
    rank = Room().rank()
    rank.scheduler.register(make_adapter("cold", [(0, "q_proj", 16)]))
    rank.submit(2, 2, "cold")
    other = rank.submit(2, 2, None)
    for _ in range(4):
        rank.step(0.0)
    assert other in rank.finished
    assert list(rank.installing) == ["cold"]


def test_failed_installation_frees_its_place_and_can_be_tried_again() -> None:
    rank = Room(slots=1).rank()
    rank.scheduler.register(make_adapter("a", [(0, "q_proj", 16)]))
    rank.submit(1, 1, "a")
    assert not rank.step(0.0)
    rank.report("a", works=False)
    assert rank.texts == {}
    again = rank.submit(1, 1, "a")
    rank.step(0.0)
    rank.report("a", works=True)
    rank.step(0.0)
    assert again in rank.finished


@pytest.mark.parametrize("small_first", [True, False])
def test_draining_goes_on_until_there_is_room(small_first: bool) -> None:
    """One large adapter needs the pages of two others, one of which is idle and one in steady use."""
    rank = Room(slots=3, pages=4, blocks=20).rank()
    rank.scheduler.register(make_adapter("idle", [(0, "q_proj", 16)]))
    rank.scheduler.register(make_adapter("busy", [(0, "q_proj", 32)]))
    rank.scheduler.register(make_adapter("large", [(0, "q_proj", 64)]))
    names = ["idle", "busy"] if small_first else ["busy", "idle"]
    for name in names:
        rank.submit(1, 1, name)
    rank.step(0.0)
    for name in names:
        rank.report(name, works=True)
    rank.submit(1, 9, "busy")
    large = rank.submit(1, 1, "large")
    for _ in range(60):
        rank.submit(1, 5, "busy")
        rank.step(STARVATION_SECONDS / 4)
        if "large" in rank.installing:
            rank.report("large", works=True)
    assert large in rank.finished


def test_a_drain_outlives_steps_that_admit_nobody() -> None:
    """Long prompts fill every other step to the brim; what is drained must stay closed meanwhile."""
    rank = Room(slots=1, blocks=60, budget=4, sequences=8).rank()
    rank.scheduler.register(make_adapter("hot", [(0, "q_proj", 16)]))
    rank.scheduler.register(make_adapter("cold", [(0, "q_proj", 16)]))
    cold = None
    for turn in range(300):
        if len(rank.texts) < 10:
            rank.submit(7, 2, "hot")
        if turn == 10:
            cold = rank.submit(2, 1, "cold")
        rank.step(STARVATION_SECONDS / 4)
        for adapter in sorted(rank.installing):
            rank.report(adapter, works=True)
    assert cold in rank.finished


def test_room_that_is_drained_goes_to_nobody_else() -> None:
    """A large adapter needs the whole pool, and small cold ones would take every page that becomes idle."""
    rank = Room(slots=4, pages=4, blocks=60, budget=8, sequences=8).rank()
    rank.scheduler.register(make_adapter("large", [(0, "q_proj", 64)]))
    large = None
    for turn in range(400):
        if len(rank.texts) < 10:
            rank.scheduler.register(make_adapter(f"small{turn}", [(0, "q_proj", 16)]))
            rank.submit(1, 3 + turn % 5, f"small{turn}")
        if turn == 10:
            large = rank.submit(1, 1, "large")
        rank.step(STARVATION_SECONDS / 4)
        for adapter in sorted(rank.installing):
            rank.report(adapter, works=True)
    assert large in rank.finished


def test_room_is_kept_for_a_long_request() -> None:
    """Short ones of all lengths keep coming, so that the pool would never be empty by itself."""
    rank = Room(blocks=16, block_size=2, budget=16).rank()
    rank.submit(2, 4, None)
    rank.step(0.0)
    long = rank.submit(30, 1, None)
    for turn in range(120):
        if len(rank.texts) < 6:
            rank.submit(2, 3 + turn % 4, None)
        rank.step(STARVATION_SECONDS / 4)
    assert long in rank.finished


def test_ending_what_is_unknown_is_no_error() -> None:
    rank = Room().rank()
    assert rank.scheduler.finish("never heard of") is None
    id = rank.submit(1, 1, None)
    rank.abort(id)
    assert rank.scheduler.finish(id) is None


def test_tokens_of_an_ended_sequence_are_dropped() -> None:
    scheduler = Room().rank().scheduler
    sequence = scheduler.add(AddRequest("a", (1, 2), SamplingParams(max_tokens=4)), b"", 0.0)
    step = scheduler.schedule(0.0)
    assert step is not None
    scheduler.finish("a")
    scheduler.record_samples(step, [7])
    assert sequence.output == []


def test_those_that_do_not_fit_are_passed_over_cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is room for is found out once a step and priority, not again for each that waits."""
    rank = Room(blocks=20, block_size=2, budget=40, sequences=8).rank()
    rank.submit(30, 8, None)
    rank.step(0.0)
    for _ in range(50):
        rank.submit(30, 1, None)
    scheduler, asked = rank.scheduler, []
    worse = scheduler._preemption.worse
    monkeypatch.setattr(scheduler._preemption, "worse", lambda sequence: asked.append(sequence) or worse(sequence))
    rank.step(0.0)
    assert len(scheduler.waiting) == 50
    assert len(asked) <= 2
    finish_everything(rank)


def test_a_blocked_sequence_sits_out() -> None:
    scheduler = Room(blocks=20).rank().scheduler
    blocked, other = (scheduler.add(AddRequest(id, (1,), SamplingParams(max_tokens=4)), b"", 0.0) for id in "ab")
    for rows in ([blocked, other], [other], [blocked, other]):
        blocked.blocked = len(rows) == 1
        step = scheduler.schedule(0.0)
        assert step is not None
        assert step.rows == rows
        scheduler.record_samples(step, [7] * len(rows))
    blocked.blocked = True
    assert step.plan.sequences[0].tokens == (7,), "after sitting out, the token is fed as it is"
    scheduler.finish("b")
    assert scheduler.schedule(0.0) is None


def test_owners_take_turns_whatever_one_of_them_queues() -> None:
    rank = Room(blocks=40, budget=8, sequences=2).rank()
    alice = [rank.submit(1, 2, None, n=4, group=f"alice:{i}") for i in range(5)]
    rank.step(0.0)
    bob = [rank.submit(1, 2, None, group=f"bob:{i}") for i in range(3)]
    while not rank.finished.issuperset(bob):
        rank.step(0.0)
    # Two of alice's ran already, and each of bob's goes beside one more of hers.
    assert len(rank.finished - set(bob)) <= 2 + 3
    finish_everything(rank)
    assert rank.finished.issuperset(alice)


def test_an_owner_owes_nothing_for_what_never_ran() -> None:
    rank = Room(blocks=40, budget=8, sequences=1).rank()
    rank.submit(1, 9, None, group="bob:0")
    rank.step(0.0)
    for id in [rank.submit(1, 9, None, group=f"alice:{i}") for i in range(20)]:
        rank.abort(id)
    rank.submit(1, 1, None, group="bob:1")
    first, second = rank.submit(1, 1, None, group="alice:x"), rank.submit(1, 1, None, group="bob:2")
    while first not in rank.finished:
        rank.step(0.0)
    assert second not in rank.finished
    finish_everything(rank)


def test_owners_with_one_request_after_the_other_do_not_starve_one_with_several() -> None:
    """Two owners, each of which has always exactly one request, use all there is."""
    rank = Room(blocks=40, budget=8, sequences=1).rank()
    alice = [rank.submit(1, 2, None, group=f"alice:{i}") for i in range(3)]
    latest: dict[str, str] = {}
    for number in range(100):
        for owner in ("bob", "carol"):
            if latest.get(owner) not in rank.texts:
                latest[owner] = rank.submit(1, 2, None, group=f"{owner}:{number}")
        rank.step(0.0)
        if rank.finished.issuperset(alice):
            break
    assert rank.finished.issuperset(alice)
    assert len(rank.finished) <= 9
    finish_everything(rank)


def test_an_owners_batch_does_not_delay_its_other_requests() -> None:
    rank = Room(blocks=40, budget=8, sequences=1).rank()
    rank.submit(1, 2, None, group="carol:0")
    rank.step(0.0)
    for i in range(20):
        rank.submit(1, 2, None, group=f"alice:{i}", priority=1)
    bob = [rank.submit(1, 2, None, group=f"bob:{i}") for i in range(8)]
    urgent = rank.submit(1, 2, None, group="alice:x")
    while urgent not in rank.finished:
        rank.step(0.0)
    assert len(rank.finished & set(bob)) <= 1
    finish_everything(rank)


def test_turns_are_kept_for_few_flows_whatever_priorities_are_sent() -> None:
    rank = Room(blocks=40, budget=8, sequences=2).rank()
    rank.submit(1, 30, None, group="alice:0")
    for priority in range(200):
        rank.submit(1, 1, None, group=f"alice:{priority}", priority=priority)
        rank.abort(rank.submit(1, 1, None, group=f"bob:{priority}", priority=-priority))
    finish_everything(rank)
    assert len(rank.scheduler.turns._next) <= 4
