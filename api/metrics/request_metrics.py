"""Metrics of requests, counted at their end: latencies, and requests and tokens per adapter and per key."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prometheus_client import Counter, Histogram

from motet.api.metrics.bounded_labels import BoundedLabels
from motet.api.metrics.request_record import RequestRecord
from motet.api.metrics.request_timing import GAP_BUCKETS

MAX_ADAPTERS = 64
"""Adapters with their own series in each API process; others are counted as `other`."""

MAX_KEYS = 256

BASE, MERGED, NO_KEY = "base", "merged", "none"

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class CountedHistogram(Histogram):
    """A histogram to which counts per bucket are added: observing each token would cost too much."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add a count per bucket, and the sum of the observations."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


FIRST_TOKEN = Histogram(
    "motet_time_to_first_token_seconds", "From a request's head to its first token", ("stream",), buckets=_LATENCY
)
INTER_TOKEN = CountedHistogram(
    "motet_inter_token_latency_seconds", "Time between two tokens of a sequence", ("stream",), buckets=GAP_BUCKETS
)
QUEUE = Histogram(
    "motet_queue_time_seconds",
    "How long a request's sequences waited for their first step (the longest of them)",
    ("stream",),
    buckets=(0.001, 0.005, *_LATENCY),
)
END_TO_END = Histogram(
    "motet_end_to_end_latency_seconds",
    "From a generating request's head to the last byte of its answer",
    ("stream",),
    buckets=_LATENCY,
)
ADAPTER_REQUESTS = Counter(
    "motet_adapter_requests", "Requests that named a model, by adapter and how they ended", ("adapter", "outcome")
)
ADAPTER_PROMPT = Counter("motet_adapter_prompt_tokens", "Prompt tokens of requests by adapter", ("adapter",))
ADAPTER_COMPLETION = Counter("motet_adapter_completion_tokens", "Completion tokens by adapter", ("adapter",))
KEY_REQUESTS = Counter("motet_key_requests", "Requests that named a model, by API key", ("key", "outcome"))
KEY_PROMPT = Counter("motet_key_prompt_tokens", "Prompt tokens of requests by API key", ("key",))
KEY_COMPLETION = Counter("motet_key_completion_tokens", "Completion tokens by API key", ("key",))

_SEVERAL = "PROMETHEUS_MULTIPROC_DIR" in os.environ
"""Whether several processes share the metrics: then a series cannot be dropped."""


def _forget_adapter(name: str) -> None:
    ADAPTER_REQUESTS.remove_by_labels({"adapter": name})
    for counter in (ADAPTER_PROMPT, ADAPTER_COMPLETION):
        counter.remove_by_labels({"adapter": name})


_adapters = BoundedLabels(MAX_ADAPTERS, None if _SEVERAL else _forget_adapter)
_keys = BoundedLabels(MAX_KEYS)


def count_request(record: RequestRecord, seconds: float) -> None:
    """Count a request that took `seconds`. A request without a model is counted only by its route."""
    timing = record.timing
    if timing is None and not record.prompt_tokens and not record.adapter:
        return
    outcome = record.outcome()
    completion = timing.tokens if timing is not None else 0
    key = _keys.label(record.key or NO_KEY)
    KEY_REQUESTS.labels(key, outcome).inc()
    KEY_PROMPT.labels(key).inc(record.prompt_tokens)
    KEY_COMPLETION.labels(key).inc(completion)
    # A name for which no adapter was found must not create a series: clients can send any.
    if record.generation or not record.adapter:
        adapter = _adapters.label(_adapter(record))
        ADAPTER_REQUESTS.labels(adapter, outcome).inc()
        ADAPTER_PROMPT.labels(adapter).inc(record.prompt_tokens)
        ADAPTER_COMPLETION.labels(adapter).inc(completion)
    if timing is None or record.method == BATCH:
        return
    stream = "true" if record.stream else "false"
    if timing.first is not None:
        FIRST_TOKEN.labels(stream).observe(timing.first - timing.began)
        QUEUE.labels(stream).observe(timing.queue_seconds)
        INTER_TOKEN.labels(stream).add(timing.gaps, timing.gap_seconds)
    if outcome in ("stop", "length"):
        END_TO_END.labels(stream).observe(seconds)


BATCH = "BATCH"
"""The method in the record of a batch's line; its latency is not counted, since it yields to other requests."""


def _adapter(record: RequestRecord) -> str:
    if not record.adapter:
        return BASE
    return MERGED if "+" in record.adapter else record.adapter
