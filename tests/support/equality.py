"""Defines when two runs are equal; every oracle and batching test uses these comparisons.

On the CPU, with the same shard count, the logits of a decode row are bit-identical in every batch. Otherwise (the
reference implementation, another shard count, another chunking of the prompt) logprobs agree within 1e-3, and tokens
agree up to the first position where the logprobs of the reference's best two are that close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Scored:
    """A chosen token and the model's logprob for it."""

    token: int
    logprob: float


def assert_same_bits(first: Sequence[Scored], second: Sequence[Scored]) -> None:
    """Tokens and logprobs are identical."""
    assert list(first) == list(second)


def assert_close(ours: Sequence[Scored], reference: Sequence[Scored], margins: Sequence[float]) -> None:
    """Assert that `ours` equals the reference within tolerance; margins[i] is the gap of its best two at position i."""
    for position, (mine, theirs, margin) in enumerate(zip(ours, reference, margins, strict=False)):
        if mine.token != theirs.token:
            assert margin < TOLERANCE, f"token {position} is {mine.token}, not {theirs.token}; best two {margin} apart"
            return
        difference = abs(mine.logprob - theirs.logprob)
        assert difference < TOLERANCE, f"logprob {position} is off by {difference}"
    assert len(ours) == len(reference)
