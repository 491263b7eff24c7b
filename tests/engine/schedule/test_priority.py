"""The order of sequences: priorities, and turns between owners."""

from __future__ import annotations

from support.scheduler_setup import SchedulerSize, finish_everything


def test_a_better_priority_is_admitted_first() -> None:
    runner = SchedulerSize(blocks=40, sequences=1, budget=8).runner()
    runner.submit(2, 2, None)
    runner.step(0.0)
    late = runner.submit(2, 3, None, priority=5)
    soon = runner.submit(2, 3, None, priority=-1)
    while soon not in runner.finished:
        assert late not in runner.finished
        runner.step(0.0)
    finish_everything(runner)


def test_owners_take_turns_however_much_one_queues() -> None:
    runner = SchedulerSize(blocks=40, budget=8, sequences=2).runner()
    alice = [runner.submit(1, 2, None, n=4, group=f"alice:{i}") for i in range(5)]
    runner.step(0.0)
    bob = [runner.submit(1, 2, None, group=f"bob:{i}") for i in range(3)]
    while not runner.finished.issuperset(bob):
        runner.step(0.0)
    # Two of alice's were running; and beside each of bob's, one more of hers runs.
    assert len(runner.finished - set(bob)) <= 2 + 3
    finish_everything(runner)
    assert runner.finished.issuperset(alice)


def test_sequences_that_never_ran_cost_no_turn() -> None:
    runner = SchedulerSize(blocks=40, budget=8, sequences=1).runner()
    runner.submit(1, 9, None, group="bob:0")
    runner.step(0.0)
    for id in [runner.submit(1, 9, None, group=f"alice:{i}") for i in range(20)]:
        runner.abort(id)
    runner.submit(1, 1, None, group="bob:1")
    first, second = runner.submit(1, 1, None, group="alice:x"), runner.submit(1, 1, None, group="bob:2")
    while first not in runner.finished:
        runner.step(0.0)
    assert second not in runner.finished
    finish_everything(runner)


def test_owners_with_one_request_after_the_other_do_not_starve_one_with_several() -> None:
    """Two owners, each with exactly one request at any time, use the whole batch."""
    runner = SchedulerSize(blocks=40, budget=8, sequences=1).runner()
    alice = [runner.submit(1, 2, None, group=f"alice:{i}") for i in range(3)]
    latest: dict[str, str] = {}
    for number in range(100):
        for owner in ("bob", "carol"):
            if latest.get(owner) not in runner.texts:
                latest[owner] = runner.submit(1, 2, None, group=f"{owner}:{number}")
        runner.step(0.0)
        if runner.finished.issuperset(alice):
            break
    assert runner.finished.issuperset(alice)
    assert len(runner.finished) <= 9
    finish_everything(runner)


def test_an_owners_batch_does_not_delay_its_other_requests() -> None:
    runner = SchedulerSize(blocks=40, budget=8, sequences=1).runner()
    runner.submit(1, 2, None, group="carol:0")
    runner.step(0.0)
    for i in range(20):
        runner.submit(1, 2, None, group=f"alice:{i}", priority=1)
    bob = [runner.submit(1, 2, None, group=f"bob:{i}") for i in range(8)]
    urgent = runner.submit(1, 2, None, group="alice:x")
    while urgent not in runner.finished:
        runner.step(0.0)
    assert len(runner.finished & set(bob)) <= 1
    finish_everything(runner)


def test_turns_are_stored_for_few_flows_whatever_the_priorities() -> None:
    runner = SchedulerSize(blocks=40, budget=8, sequences=2).runner()
    runner.submit(1, 30, None, group="alice:0")
    for priority in range(200):
        runner.submit(1, 1, None, group=f"alice:{priority}", priority=priority)
        runner.abort(runner.submit(1, 1, None, group=f"bob:{priority}", priority=-priority))
    finish_everything(runner)
    assert len(runner.scheduler.turns._next) <= 4
