"""One step while it is being put together: whose tokens it feeds, and the plan that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from motet.engine.schedule.plan import LoraChunk, SequencePlan, StepPlan
from motet.engine.schedule.sequence import Sequence


@dataclass
class Step:
    """A plan together with the sequences behind it: `sequences[i]` is behind `plan.sequences[i]`, and `rows[j]` is
    the one that sample row j belongs to."""

    plan: StepPlan
    rows: list[Sequence]
    sequences: list[Sequence]


@dataclass
class StepBuilder:
    """The sequences' shares of a step, and how many tokens it may still take."""

    left: int
    shares: dict[int, tuple[Sequence, int]] = field(default_factory=dict)

    def add(self, sequence: Sequence, count: int) -> None:
        """Let `sequence` feed its next `count` tokens."""
        self.shares[sequence.number] = sequence, count
        self.left -= count

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence's share back, if it has one."""
        _, count = self.shares.pop(sequence.number, (None, 0))
        self.left += count

    def build(self, engine_id: str, number: int) -> Step:
        """The step. Its sequences' tokens count as computed from now on."""
        # Single-token sequences come first, so that attention can treat them as one group.
        shares = sorted(self.shares.values(), key=lambda share: (share[1] > 1, share[0].number))
        plans: list[SequencePlan] = []
        chunks: list[LoraChunk] = []
        rows: list[Sequence] = []
        start = 0
        for sequence, count in shares:
            plans.append(_share(sequence, count))
            if sequence.slot is not None:
                chunks.append(LoraChunk(sequence.slot, start, count))
            if plans[-1].sample:
                rows.append(sequence)
            sequence.num_computed_tokens += count
            sequence.sampled_row = None
            start += count
        plan = StepPlan(engine_id, number, tuple(plans), tuple(chunks))
        return Step(plan, rows, [sequence for sequence, _ in shares])


def _share(sequence: Sequence, count: int) -> SequencePlan:
    """A sequence's next `count` tokens as the ranks see them."""
    start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + count
    tokens = sequence.tokens(start, end)
    if sequence.sampled_row is not None:
        tokens = (-1 - sequence.sampled_row,)
    pool = sequence.request.pooling is not None
    score = tuple(sequence.request.prompt[start + 1 : end + 1]) if sequence.wants_prompt_logprobs else ()
    return SequencePlan(tokens, start, tuple(sequence.blocks), end == sequence.num_tokens and not pool, score, pool)
