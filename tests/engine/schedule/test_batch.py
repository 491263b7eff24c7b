"""What a step contains: decode tokens before prompts, no blocked sequences, prompt logprobs and pooling."""

from __future__ import annotations

from support.scheduler_setup import SchedulerSize

from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams


def test_a_long_prompt_does_not_stop_running_sequences() -> None:
    runner = SchedulerSize(blocks=40, budget=8).runner()
    runner.submit(1, 10, None)
    runner.step(0.0)
    long = runner.submit(60, 1, None)
    lengths = []
    while long not in runner.finished:
        runner.step(0.0)
        lengths.append(len(runner.texts.get("s0", ())))
    assert lengths[:8] == list(range(3, 11)), "one token per step, whatever arrives"


def test_a_blocked_sequence_is_in_no_step() -> None:
    scheduler = SchedulerSize(blocks=20).runner().scheduler
    blocked, other = (scheduler.add(AddRequest(id, (1,), SamplingParams(max_tokens=4)), b"", 0.0) for id in "ab")
    for rows in ([blocked, other], [other], [blocked, other]):
        blocked.blocked = len(rows) == 1
        step = scheduler.schedule(0.0)
        assert step is not None
        assert step.rows == rows
        scheduler.record_samples(step, [7] * len(rows))
    blocked.blocked = True
    assert step.plan.sequences[0].tokens == (7,), "after a step without it, the token itself is fed"
    scheduler.finish("b")
    assert scheduler.schedule(0.0) is None


def test_a_prompts_logprobs_are_computed_once_in_chunks() -> None:
    runner = SchedulerSize(blocks=40, block_size=2, budget=2).runner()
    params = SamplingParams(max_tokens=3, prompt_logprobs=0)
    runner.scheduler.add(AddRequest("a", (1, 2, 3, 4, 5), params), b"", 0.0)
    scored = []
    for _ in range(5):
        step = runner.scheduler.schedule(0.0)
        assert step is not None
        scored.append(step.plan.sequences[0].prompt_logprob_ids)
        runner.scheduler.record_samples(step, [9] * len(step.rows))
    assert scored == [(2, 3), (4, 5), (), (), ()]


def test_a_pooled_prompt_samples_nothing() -> None:
    runner = SchedulerSize(blocks=40, block_size=2, budget=3).runner()
    runner.scheduler.add(AddRequest("a", (1, 2, 3, 4, 5), SamplingParams(max_tokens=1), pooling="mean"), b"", 0.0)
    for count in (3, 2):
        step = runner.scheduler.schedule(0.0)
        assert step is not None
        [share] = step.plan.sequences
        assert (share.pooling, share.sample, len(share.tokens)) == (True, False, count)
    assert runner.scheduler.running[0].num_pending_tokens == 0
