"""Logprobs as they are reported: the model's own, before any warping. V is the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.core.sampling_params import MAX_TOP_LOGPROBS


@dataclass(frozen=True)
class Scores:
    """M rows: the wanted ids' logprobs [M] fp32, and the likeliest ids [M, k] with theirs [M, k], best first."""

    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The rows of all `parts`, in order."""
        columns = ([part.logprobs for part in parts], [part.top_ids for part in parts], [p.top_logprobs for p in parts])
        return cls(*(torch.cat(column) for column in columns))

    def top(self, row: int, count: int) -> tuple[tuple[int, float], ...]:
        """The `count` likeliest (id, logprob) of a row."""
        ids, logprobs = self.top_ids[row, :count].tolist(), self.top_logprobs[row, :count].tolist()
        return tuple(zip(ids, logprobs, strict=True))


def score(logits: Tensor, wanted: Tensor) -> Scores:
    """Scores of the ids `wanted` [M] under fp32 `logits` [M, V]; as many of the likeliest as anybody may ask for."""
    logprobs = torch.log_softmax(logits, dim=-1)
    # Always as many, since how ties come out depends on the number asked for.
    best = torch.topk(logprobs, min(MAX_TOP_LOGPROBS, logits.shape[1]), dim=-1)
    return Scores(logprobs.gather(1, wanted[:, None])[:, 0], best.indices, best.values)
