"""Which waiting sequences start: cold adapters, reserved room, and choices that share their prompt's blocks."""

from __future__ import annotations

from support.fake_model_runner import FakeModelRunner, make_adapter
from support.scheduler_setup import SchedulerSize, finish_everything

from motet.core.messages import AddRequest
from motet.core.sampling_params import SamplingParams
from motet.engine.schedule.admission import STARVATION_SECONDS


def test_cold_adapter_delays_no_other_sequence() -> None:
    runner = SchedulerSize().runner()
    runner.scheduler.register(make_adapter("cold", [(0, "q_proj", 16)]))
    runner.submit(2, 2, "cold")
    other = runner.submit(2, 2, None)
    for _ in range(4):
        runner.step(0.0)
    assert other in runner.finished
    assert list(runner.installing) == ["cold"]


def test_a_failed_installation_frees_its_slot_and_can_be_repeated() -> None:
    runner = SchedulerSize(slots=1).runner()
    runner.scheduler.register(make_adapter("a", [(0, "q_proj", 16)]))
    runner.submit(1, 1, "a")
    assert not runner.step(0.0)
    runner.report("a", works=False)
    assert runner.texts == {}
    again = runner.submit(1, 1, "a")
    runner.step(0.0)
    runner.report("a", works=True)
    runner.step(0.0)
    assert again in runner.finished


def test_blocks_are_reserved_for_a_starving_long_request() -> None:
    """Short requests keep arriving, so that the blocks would never all be free otherwise."""
    runner = SchedulerSize(blocks=16, block_size=2, budget=16).runner()
    runner.submit(2, 4, None)
    runner.step(0.0)
    long = runner.submit(30, 1, None)
    for turn in range(120):
        if len(runner.texts) < 6:
            runner.submit(2, 3 + turn % 4, None)
        runner.step(STARVATION_SECONDS / 4)
    assert long in runner.finished


def tokens_fed(runner: FakeModelRunner) -> int:
    """Run a step; returns the number of tokens that it computes."""
    before = {s.id: s.num_computed_tokens for s in runner.scheduler.running}
    runner.step(0.0)
    return sum(s.num_computed_tokens - before.get(s.id, 0) for s in runner.scheduler.running)


def test_choices_share_the_full_blocks_of_their_prompt() -> None:
    runner = SchedulerSize(blocks=40, block_size=4, budget=32, sequences=8).runner()
    runner.submit(14, 6, None, n=4)
    assert tokens_fed(runner) == 14, "the first choice computes the prompt alone"
    # The others share three full blocks, and compute the two tokens of the fourth themselves.
    assert [len(s.blocks) for s in runner.scheduler.running] == [4]
    runner.step(0.0)
    first, *others = runner.scheduler.running
    assert all(s.blocks[:3] == first.blocks[:3] and s.blocks[3] != first.blocks[3] for s in others)
    assert runner.scheduler.blocks.total - runner.scheduler.blocks.free == 3 + 4
    finish_everything(runner)


def test_choices_continue_when_the_first_has_ended() -> None:
    runner = SchedulerSize(blocks=40, block_size=4, budget=32, sequences=8).runner()
    prefix_of = runner.submit(14, 6, None, n=3)
    runner.step(0.0)
    runner.step(0.0)
    runner.abort(prefix_of)
    assert len(runner.scheduler.running) == 2
    finish_everything(runner)


def test_a_prefix_of_another_prompt_is_not_shared() -> None:
    runner = SchedulerSize(blocks=40, block_size=2, budget=32).runner()
    prefix_of = runner.submit(6, 6, None)
    runner.step(0.0)
    runner.texts["odd"], runner.limits["odd"] = [901, 902, 903, 904], 6
    request = AddRequest("odd", (901, 902, 903, 904), SamplingParams(max_tokens=2), prefix_of=prefix_of)
    runner.scheduler.add(request, b"", 0.0)
    finish_everything(runner)
    assert "odd" in runner.finished


def test_prompts_with_logprobs_share_nothing() -> None:
    runner = SchedulerSize(blocks=40, block_size=2, budget=32).runner()
    prompt, params = (1, 2, 3, 4, 5), SamplingParams(max_tokens=2, prompt_logprobs=0)
    for id, prefix_of in (("a", None), ("b", "a")):
        runner.scheduler.add(AddRequest(id, prompt, params, prefix_of=prefix_of), b"", 0.0)
    step = runner.scheduler.schedule(0.0)
    assert step is not None
    assert [share.prompt_logprob_ids for share in step.plan.sequences] == [(2, 3, 4, 5), (2, 3, 4, 5)]
