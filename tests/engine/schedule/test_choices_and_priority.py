"""The choices of a request share their prompt's blocks, and a better priority goes first."""

from __future__ import annotations

from support.fake_model_runner import FakeModelRunner, make_adapter
from support.scheduler_setup import Room, finish_everything

from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.schedule.admission import STARVATION_SECONDS


def tokens_fed(rank: FakeModelRunner) -> int:
    """Tokens that the next step computes."""
    before = {s.id: s.num_computed_tokens for s in rank.scheduler.running}
    rank.step(0.0)
    return sum(s.num_computed_tokens - before.get(s.id, 0) for s in rank.scheduler.running)


def test_choices_share_the_full_blocks_of_their_prompt() -> None:
    rank = Room(blocks=40, block_size=4, budget=32, sequences=8).rank()
    rank.submit(14, 6, None, n=4)
    assert tokens_fed(rank) == 14, "the first choice computes the prompt alone"
    # The others take over three full blocks, and feed the two tokens of the fourth themselves.
    assert [len(s.blocks) for s in rank.scheduler.running] == [4]
    rank.step(0.0)
    first, *others = rank.scheduler.running
    assert all(s.blocks[:3] == first.blocks[:3] and s.blocks[3] != first.blocks[3] for s in others)
    assert rank.scheduler.blocks.total - rank.scheduler.blocks.free == 3 + 4
    finish_everything(rank)


def test_choices_go_on_when_their_leader_has_gone() -> None:
    rank = Room(blocks=40, block_size=4, budget=32, sequences=8).rank()
    prefix_of = rank.submit(14, 6, None, n=3)
    rank.step(0.0)
    rank.step(0.0)
    rank.abort(prefix_of)
    assert len(rank.scheduler.running) == 2
    finish_everything(rank)


def test_a_leader_with_another_prompt_is_none() -> None:
    rank = Room(blocks=40, block_size=2, budget=32).rank()
    prefix_of = rank.submit(6, 6, None)
    rank.step(0.0)
    rank.texts["odd"], rank.limits["odd"] = [901, 902, 903, 904], 6
    request = AddRequest("odd", (901, 902, 903, 904), SamplingParams(max_tokens=2), prefix_of=prefix_of)
    rank.scheduler.add(request, b"", 0.0)
    finish_everything(rank)
    assert "odd" in rank.finished


def test_prompts_that_are_scored_share_nothing() -> None:
    rank = Room(blocks=40, block_size=2, budget=32).rank()
    prompt, params = (1, 2, 3, 4, 5), SamplingParams(max_tokens=2, prompt_logprobs=0)
    for id, prefix_of in (("a", None), ("b", "a")):
        rank.scheduler.add(AddRequest(id, prompt, params, prefix_of=prefix_of), b"", 0.0)
    step = rank.scheduler.schedule(0.0)
    assert step is not None
    assert [share.prompt_logprob_ids for share in step.plan.sequences] == [(2, 3, 4, 5), (2, 3, 4, 5)]


def test_a_scored_prompt_is_scored_once_in_chunks() -> None:
    rank = Room(blocks=40, block_size=2, budget=2).rank()
    params = SamplingParams(max_tokens=3, prompt_logprobs=0)
    rank.scheduler.add(AddRequest("a", (1, 2, 3, 4, 5), params), b"", 0.0)
    scored = []
    for _ in range(5):
        step = rank.scheduler.schedule(0.0)
        assert step is not None
        scored.append(step.plan.sequences[0].prompt_logprob_ids)
        rank.scheduler.record_samples(step, [9] * len(step.rows))
    assert scored == [(2, 3), (4, 5), (), (), ()]


def test_a_pooled_prompt_samples_nothing() -> None:
    rank = Room(blocks=40, block_size=2, budget=3).rank()
    rank.scheduler.add(AddRequest("a", (1, 2, 3, 4, 5), SamplingParams(max_tokens=1), pooling="mean"), b"", 0.0)
    for count in (3, 2):
        step = rank.scheduler.schedule(0.0)
        assert step is not None
        [share] = step.plan.sequences
        assert (share.pooling, share.sample, len(share.tokens)) == (True, False, count)
    assert rank.scheduler.running[0].num_pending_tokens == 0


def test_a_better_priority_is_admitted_first() -> None:
    rank = Room(blocks=40, sequences=1, budget=8).rank()
    rank.submit(2, 2, None)
    rank.step(0.0)
    late = rank.submit(2, 3, None, priority=5)
    soon = rank.submit(2, 3, None, priority=-1)
    while soon not in rank.finished:
        assert late not in rank.finished
        rank.step(0.0)
    finish_everything(rank)


def test_a_better_priority_takes_the_place_of_a_worse_one() -> None:
    rank = Room(blocks=40, sequences=2, budget=8).rank()
    slow = [rank.submit(2, 12, None, priority=9) for _ in range(2)]
    rank.step(0.0)
    live = rank.submit(2, 2, None)
    rank.step(0.0)
    assert [s.id for s in rank.scheduler.running] == [slow[0], live]
    assert rank.scheduler.preemptions == 1
    finish_everything(rank)


def test_blocks_are_taken_from_a_worse_priority_and_only_if_that_is_enough() -> None:
    rank = Room(blocks=10, block_size=2, sequences=4, budget=20).rank()
    batch = rank.submit(8, 8, None, priority=9)
    rank.step(0.0)
    live = rank.submit(10, 2, None)
    rank.step(0.0)
    assert [s.id for s in rank.scheduler.running] == [live]
    huge = rank.submit(17, 2, None)
    rank.step(0.0)
    assert rank.scheduler.preemptions == 1
    finish_everything(rank)
    assert {batch, live, huge} <= rank.finished


def test_an_adapter_s_slot_is_taken_from_a_worse_priority() -> None:
    rank = Room(blocks=40, slots=1, budget=8).rank()
    for name in ("batch", "live"):
        rank.scheduler.register(make_adapter(name, [(0, "q_proj", 16)]))
    rank.submit(2, 30, "batch", priority=9)
    rank.step(0.0)
    rank.report("batch", works=True)
    rank.step(0.0)
    live = rank.submit(2, 2, "live")
    rank.step(0.0)
    rank.report("live", works=True)
    for _ in range(3):
        rank.step(0.0)
    assert live in rank.finished
    finish_everything(rank)


def test_a_starving_batch_holds_up_nobody_with_a_better_priority() -> None:
    rank = Room(blocks=12, block_size=2, sequences=4, budget=24).rank()
    rank.submit(22, 1, None, priority=9)
    rank.submit(22, 1, None, priority=9)
    rank.step(0.0)
    rank.step(STARVATION_SECONDS * 2)
    live = rank.submit(4, 2, None)
    rank.step(0.0)
    assert live in {s.id for s in rank.scheduler.running}
    finish_everything(rank)


def test_a_group_is_found_and_the_wait_is_known() -> None:
    rank = Room(blocks=40, sequences=2).rank()
    first = rank.submit(2, 9, None, n=2)
    rank.submit(2, 1, None)
    rank.step(0.5)
    assert sorted(s.id for s in rank.scheduler.in_group(first)) == ["s0", "s1"]
    assert rank.scheduler.running[0].start_time == 0.5
    finish_everything(rank)
