"""Logprobs of a prompt's tokens, from the model's logits as they are. V is the vocabulary's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.core.sampling_params import MAX_TOP_LOGPROBS


@dataclass(frozen=True)
class PromptLogprobs:
    """M rows: the logprobs [M] fp32 of given ids, and the top ids [M, k] with their logprobs [M, k], best first."""

    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    @classmethod
    def joined(cls, parts: Sequence[PromptLogprobs]) -> PromptLogprobs:
        """The rows of all `parts`, in order."""
        columns = ([part.logprobs for part in parts], [part.top_ids for part in parts], [p.top_logprobs for p in parts])
        return cls(*(torch.cat(column) for column in columns))

    def top(self, row: int, count: int) -> tuple[tuple[int, float], ...]:
        """The `count` most likely (id, logprob) pairs of a row."""
        ids, logprobs = self.top_ids[row, :count].tolist(), self.top_logprobs[row, :count].tolist()
        return tuple(zip(ids, logprobs, strict=True))


def prompt_logprobs_of(logits: Tensor, ids: Tensor) -> PromptLogprobs:
    """The logprobs of `ids` [M] under fp32 `logits` [M, V], with MAX_TOP_LOGPROBS top ids for every row."""
    logprobs = torch.log_softmax(logits, dim=-1)
    # The count is fixed, since the order of ties depends on it.
    best = torch.topk(logprobs, min(MAX_TOP_LOGPROBS, logits.shape[1]), dim=-1)
    return PromptLogprobs(logprobs.gather(1, ids[:, None])[:, 0], best.indices, best.values)
