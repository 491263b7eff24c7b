"""Collects the logprobs and the pooled hidden states of prompts over the steps that compute them.

A preempted prompt is computed again from its start; what was collected of it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from motet.core.messages import PromptLogprob
from motet.engine.sampling.prompt_logprobs import PromptLogprobs
from motet.engine.schedule.batch import Step
from motet.engine.schedule.sequence import Sequence


@dataclass
class PromptOutputs:
    """By sequence id. `take_*` return a result once; `forget` drops the rest."""

    _logprobs: dict[str, list[PromptLogprob]] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, step: Step, logprobs: PromptLogprobs | None, hidden_states: Tensor) -> None:
        """Add a step's results: a row per id in the plan's `prompt_logprob_ids`, and one per token with `pooling`."""
        logprob_row = pooling_row = 0
        for sequence, plan in zip(step.sequences, step.plan.sequences, strict=True):
            if plan.start == 0:
                self.forget(sequence.id)
            if plan.prompt_logprob_ids:
                assert logprobs is not None, "rank 0 has the logprobs"
                self._add_logprobs(sequence, plan.prompt_logprob_ids, logprobs, logprob_row)
                logprob_row += len(plan.prompt_logprob_ids)
            if plan.pooling:
                self._add_hidden_states(sequence, hidden_states[pooling_row : pooling_row + len(plan.tokens)])
                pooling_row += len(plan.tokens)

    def take_logprobs(self, sequence: Sequence) -> tuple[PromptLogprob, ...]:
        """The logprobs of the whole prompt, None for its first token. Empty without prompt logprobs, or when taken."""
        logprobs = self._logprobs.pop(sequence.id, [])
        if not self._is_complete(sequence, logprobs):
            return ()
        return (PromptLogprob(sequence.request.prompt[0], None), *logprobs)

    def take_vector(self, sequence: Sequence) -> tuple[float, ...]:
        """The pooled vector of a prompt that has been computed."""
        total = self._sums.pop(sequence.id)
        mean = total / len(sequence.request.prompt) if sequence.request.pooling == "mean" else total
        return tuple(mean.float().tolist())

    def forget(self, id: str) -> None:
        """Forget a sequence that has ended, or whose prompt is computed again."""
        self._logprobs.pop(id, None)
        self._sums.pop(id, None)

    def _is_complete(self, sequence: Sequence, logprobs: list[PromptLogprob]) -> bool:
        """Whether the sequence has just sampled its first token, and has the logprobs of its whole prompt."""
        requested = sequence.request.params.prompt_logprobs is not None
        return requested and len(sequence.output) == 1 and len(logprobs) == len(sequence.request.prompt) - 1

    def _add_logprobs(self, sequence: Sequence, ids: tuple[int, ...], logprobs: PromptLogprobs, row: int) -> None:
        count = sequence.request.params.prompt_logprobs or 0
        values = logprobs.logprobs[row : row + len(ids)].tolist()
        self._logprobs.setdefault(sequence.id, []).extend(
            PromptLogprob(id, value, logprobs.top(row + i, count))
            for i, (id, value) in enumerate(zip(ids, values, strict=True))
        )

    def _add_hidden_states(self, sequence: Sequence, states: Tensor) -> None:
        if sequence.request.pooling == "last":
            self._sums[sequence.id] = states[-1].clone()
        else:
            # In fp64, so that the mean does not depend on how the prompt was split into steps.
            total = states.to(torch.float64).sum(dim=0)
            self._sums[sequence.id] = self._sums[sequence.id] + total if sequence.id in self._sums else total
