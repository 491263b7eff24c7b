"""Measures the stages of a request, and the time between its tokens."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field

from motet.core.messages import FinishReason
from motet.engine.client.text_stream import TextDelta

GAP_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds, in seconds, of the buckets for the time between tokens; the last bucket has no bound."""


@dataclass
class Timing:
    """When a request arrived, was validated, and had its tokens (time.perf_counter, in seconds).

    `gaps` counts the tokens after each sequence's first by the time since the previous one (GAP_BUCKETS), `gap_seconds`
    is the sum of these times; tokens that arrive together share the time. `finish` is `length` if any sequence's is.
    """

    began: float
    checked: float = field(default_factory=time.perf_counter)
    queue_seconds: float = 0.0
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    finish: FinishReason | None = None
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BUCKETS) + 1))
    gap_seconds: float = 0.0
    _latest: dict[int, float] = field(default_factory=dict)  # sequence -> when its latest tokens arrived
    _shared_tokens: int = 0

    def add(self, index: int, delta: TextDelta) -> None:
        """Add a delta of sequence `index` as it arrives."""
        self._shared_tokens += len(delta.tokens)
        if delta.tokens and delta.tokens[0].queue_seconds > self.queue_seconds:
            self.queue_seconds = delta.tokens[0].queue_seconds
        if delta.more:  # the next delta has arrived already; both share the time
            return
        now = self.last = time.perf_counter()
        count, self._shared_tokens = self._shared_tokens, 0
        self.tokens += count
        latest = self._latest.get(index)
        self._latest[index] = now
        if self.first is None:
            self.first = now
        if latest is not None and count:
            self.gaps[bisect_left(GAP_BUCKETS, (now - latest) / count)] += count
            self.gap_seconds += now - latest
        if delta.finish_reason is not None and self.finish != "length":
            self.finish = delta.finish_reason

    def milliseconds(self) -> dict[str, float]:
        """The time of each stage of a complete answer."""
        now = time.perf_counter()
        total, validation = now - self.began, self.checked - self.began
        first = self.last if self.first is None else self.first
        inference = max(total - validation - self.queue_seconds, 0.0)
        seconds = {
            "compute": total,
            "total": total,
            "validation": validation,
            "queue": self.queue_seconds,
            "inference": inference,
            "time-per-token": inference / max(self.tokens, 1),
            "time-to-first-token": first - self.began,
            "time-per-output-token": (self.last - first) / max(self.tokens - 1, 1),
        }
        return {stage: 1000 * value for stage, value in seconds.items()}
