"""The running batch and the step built from it: which sequences run, with how many tokens, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.kv_block_manager import BlockManager
from motet.engine.schedule.plan import LoraChunk, SequencePlan, StepPlan
from motet.engine.schedule.sequence import Sequence


@dataclass(frozen=True)
class SchedulerConfig:
    """The most tokens in a step, the most running sequences, and the most tokens of a sequence."""

    max_batch_tokens: int
    max_sequences: int
    max_context: int


@dataclass
class Step:
    """A plan and its sequences: `sequences[i]` belongs to `plan.sequences[i]`, and `rows[j]` to sample row j."""

    plan: StepPlan
    rows: list[Sequence]
    sequences: list[Sequence]


class Batch:
    """The running sequences with their blocks and adapter slots, and their tokens in the step that is being built."""

    def __init__(self, blocks: BlockManager, slots: AdapterSlots, config: SchedulerConfig) -> None:
        self.blocks, self.slots, self.config = blocks, slots, config
        self.running: list[Sequence] = []
        self.tokens_left = 0
        self.version = 0
        """Changes whenever a sequence starts or leaves, and with every step."""
        self._num_tokens: dict[Sequence, int] = {}

    @property
    def full(self) -> bool:
        """Whether the most sequences run."""
        return len(self.running) >= self.config.max_sequences

    def begin_step(self) -> None:
        """Begin to build the next step."""
        self.version += 1
        self.tokens_left = self.config.max_batch_tokens
        self._num_tokens.clear()

    def in_step_order(self) -> list[Sequence]:
        """The running sequences in the order in which they get tokens of a step.

        Decoding sequences come before prompts, so that they keep their speed whatever arrives.
        """
        return sorted(self.running, key=lambda s: (s.num_pending_tokens > 1, s.precedence))

    def start(self, sequence: Sequence, prefix_blocks: list[int]) -> None:
        """Make a waiting sequence run. It shares the full blocks `prefix_blocks` and pins its adapter."""
        self.version += 1
        self.running.append(sequence)
        if prefix_blocks:
            sequence.blocks = self.blocks.share(prefix_blocks)
            sequence.num_computed_tokens = len(prefix_blocks) * self.blocks.block_size
        if sequence.request.adapter is not None:
            sequence.slot = self.slots.pin(sequence.request.adapter)

    def remove(self, sequence: Sequence) -> None:
        """Take a running sequence out of the batch and the step; free its blocks and unpin its adapter."""
        self.version += 1
        self.running.remove(sequence)
        self.blocks.release(sequence.blocks)
        if sequence.request.adapter is not None:
            self.slots.unpin(sequence.request.adapter)
        sequence.slot = None
        self.tokens_left += self._num_tokens.pop(sequence, 0)

    def add_tokens(self, sequence: Sequence, count: int) -> bool:
        """Add a running sequence's next `count` tokens to the step; False, and no change, if blocks are missing."""
        if not self.blocks.grow(sequence.blocks, sequence.num_computed_tokens + count):
            return False
        self._num_tokens[sequence] = count
        self.tokens_left -= count
        return True

    def finish_step(self, engine_id: str, number: int) -> Step | None:
        """The step, or None if it has no tokens. Its tokens count as computed from now on."""
        for sequence in self.running:
            if sequence not in self._num_tokens:
                sequence.sampled_row = None  # the samples of this step overwrite its row
        if not self._num_tokens:
            return None
        # Single-token sequences come first, so that attention can process them as one group.
        shares = sorted(self._num_tokens.items(), key=lambda share: (share[1] > 1, share[0].precedence.number))
        plans: list[SequencePlan] = []
        chunks: list[LoraChunk] = []
        rows: list[Sequence] = []
        start = 0
        for sequence, count in shares:
            plans.append(_sequence_plan(sequence, count))
            if sequence.slot is not None:
                chunks.append(LoraChunk(sequence.slot, start, count))
            sequence.num_computed_tokens += count
            sequence.sampled_row = None
            if plans[-1].sample:
                sequence.sampled_row = len(rows)
                sequence.num_unread += 1
                rows.append(sequence)
            start += count
        plan = StepPlan(engine_id, number, tuple(plans), tuple(chunks))
        return Step(plan, rows, [sequence for sequence, _ in shares])


def _sequence_plan(sequence: Sequence, count: int) -> SequencePlan:
    """The plan of a sequence's next `count` tokens."""
    start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + count
    tokens = sequence.tokens(start, end)
    if sequence.sampled_row is not None:
        tokens = (-1 - sequence.sampled_row,)
    pooling = sequence.request.pooling is not None
    following = tuple(sequence.request.prompt[start + 1 : end + 1]) if sequence.wants_prompt_logprobs else ()
    samples = end == sequence.num_tokens and not pooling
    return SequencePlan(tokens, start, tuple(sequence.blocks), samples, following, pooling)
