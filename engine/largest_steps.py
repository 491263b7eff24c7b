"""The steps that take the most memory, with made-up sequences; they run before the key-value cache is sized.

Every block table consists of block 0, so that one block is enough. Imports no torch.
"""

from __future__ import annotations

from itertools import accumulate

from motet.core.messages import AddRequest
from motet.core.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from motet.engine.schedule.batch import SchedulerConfig, Step
from motet.engine.schedule.plan import LoraChunk, SequencePlan, StepPlan
from motet.engine.schedule.priority import Precedence
from motet.engine.schedule.sequence import Sequence

# Every part of the sampler has work, and typical_p is computed over the whole vocabulary.
_PARAMS = SamplingParams(
    max_tokens=1,
    top_p=0.99,
    min_p=1e-9,
    typical_p=0.99,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={0: 1.0},
    logprobs=MAX_TOP_LOGPROBS,
)


def largest_steps(config: SchedulerConfig, block_size: int, adapter_slots: int) -> list[Step]:
    """A step with the most tokens, and one with the most sequences that decode.

    All of them sample, have rows of adapters, prompt logprobs and returned hidden states.
    """
    count = min(config.max_sequences, config.max_batch_tokens)
    tokens = min(config.max_batch_tokens, count * config.max_context)
    shortest, longer = divmod(tokens, count)
    prompts = [shortest] * (count - longer) + [shortest + 1] * longer  # single tokens come first in a step
    return [_step(lengths, block_size, adapter_slots, _PARAMS) for lengths in (prompts, [1] * count)]


def plain_decodes(config: SchedulerConfig) -> Step:
    """A step with the most sequences that decode, with one adapter, and draw their tokens without anything else."""
    count = min(config.max_sequences, config.max_batch_tokens)
    return _step([1] * count, 1, 1, SamplingParams(max_tokens=1, top_p=0.99))


def _step(lengths: list[int], block_size: int, adapter_slots: int, params: SamplingParams) -> Step:
    sequences, chunks = [], []
    first_rows = accumulate(lengths, initial=0)
    for i, (length, first_row) in enumerate(zip(lengths, first_rows, strict=False)):
        sequences.append(
            SequencePlan(
                tokens=(0,) * length,
                start=0,
                block_table=(0,) * -(-length // block_size),
                sample=True,
                prompt_logprob_ids=(0,) * (length - 1),
                pooling=length > 1,
            )
        )
        chunks.append(LoraChunk(i % adapter_slots, first_row, length))
    rows = [_sequence(i, length, params) for i, length in enumerate(lengths)]
    return Step(StepPlan("", 0, tuple(sequences), tuple(chunks)), rows, rows)


def _sequence(number: int, length: int, params: SamplingParams) -> Sequence:
    request = AddRequest(f"largest-{number}", (0,) * length, params)
    return Sequence(request, b"", Precedence(0, 0, number), 0.0, max_output=1, num_unread=1)
