"""What is gathered of prompts while they are computed: their tokens' scores, and their pooled hidden states.

A prompt may take several steps; one that is preempted begins anew, and what was gathered of it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from motet.core.messages import PromptLogprob
from motet.engine.model_runner import StepOutput
from motet.engine.schedule.batch import Step
from motet.engine.schedule.sequence import Sequence


@dataclass
class PromptResults:
    """By sequence id; `take_*` hands a result out once, `forget` drops what is left."""

    _scores: dict[str, list[PromptLogprob]] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, step: Step, output: StepOutput) -> None:
        """Take in what a step has computed of prompts."""
        scored = pooled = 0
        for sequence, share in zip(step.sequences, step.plan.sequences, strict=True):
            if share.start == 0:
                self.forget(sequence.id)
            if share.prompt_logprob_ids:
                self._add_scores(sequence, share.prompt_logprob_ids, output, scored)
                scored += len(share.prompt_logprob_ids)
            if share.pooling:
                self._add_states(sequence, output.pooled[pooled : pooled + len(share.tokens)])
                pooled += len(share.tokens)

    def take_scores(self, sequence: Sequence) -> tuple[PromptLogprob, ...]:
        """The scores of the whole prompt, whose first token has none; empty if none were wanted, or a second time."""
        scores = self._scores.pop(sequence.id, [])
        return (PromptLogprob(sequence.request.prompt[0], None), *scores) if self._wanted(sequence, scores) else ()

    def take_vector(self, sequence: Sequence) -> tuple[float, ...]:
        """The pooled vector of a prompt that is complete."""
        total = self._sums.pop(sequence.id)
        mean = total / len(sequence.request.prompt) if sequence.request.pooling == "mean" else total
        return tuple(mean.float().tolist())

    def forget(self, id: str) -> None:
        """A sequence has ended, or begins anew."""
        self._scores.pop(id, None)
        self._sums.pop(id, None)

    def _wanted(self, sequence: Sequence, scores: list[PromptLogprob]) -> bool:
        """Whether this is the sequence's first token after its prompt was scored."""
        wants = sequence.request.params.prompt_logprobs is not None
        return wants and len(sequence.output) == 1 and len(scores) == len(sequence.request.prompt) - 1

    def _add_scores(self, sequence: Sequence, ids: tuple[int, ...], output: StepOutput, row: int) -> None:
        assert output.scores is not None, "rank 0 has the scores"
        count = sequence.request.params.prompt_logprobs or 0
        logprobs = output.scores.logprobs[row : row + len(ids)].tolist()
        self._scores.setdefault(sequence.id, []).extend(
            PromptLogprob(id, logprob, output.scores.top(row + i, count))
            for i, (id, logprob) in enumerate(zip(ids, logprobs, strict=True))
        )

    def _add_states(self, sequence: Sequence, states: Tensor) -> None:
        if sequence.request.pooling == "last":
            self._sums[sequence.id] = states[-1].clone()
        else:
            # In fp64, so that the mean does not depend on how the prompt was cut.
            total = states.to(torch.float64).sum(dim=0)
            self._sums[sequence.id] = self._sums[sequence.id] + total if sequence.id in self._sums else total
