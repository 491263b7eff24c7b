"""Log lines and metrics of adapter loads: one line per stage and per failure; repeated failures are rate-limited.

Lines contain no tokens: errors come from `call_source`, which removes the caller's token.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from loguru import logger
from prometheus_client import Counter, Histogram

from motet.core.errors import MotetError

Stage: TypeAlias = Literal["resolve", "fetch", "prepare", "merge"]

REPEAT_SECONDS = 60.0
"""The same failure of an adapter is logged once in this time, with the number of repetitions."""

MAX_LINES = 60
"""The maximum number of failures logged in REPEAT_SECONDS, for all adapters: callers may invent names."""

REMEMBERED = 1024

STAGE_SECONDS = Histogram(
    "motet_adapter_load_seconds",
    "Duration of one stage of an adapter's load",
    ("stage", "source"),
    buckets=(0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
FAILURES = Counter(
    "motet_adapter_load_failures",
    "Stages of adapter loads that failed or were refused, by the error's code",
    ("stage", "source", "cause"),
)

_DONE = {"fetch": "adapter fetched", "prepare": "adapter prepared", "merge": "adapters merged"}
_CALLER_STATUSES = (401, 403, 404)


class RateLimit:
    """Limits log lines per REPEAT_SECONDS: one per key, and MAX_LINES in total."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        self._window = -REPEAT_SECONDS
        self._lines = 0

    def allows(self, key: Hashable, now: float) -> int | None:
        """The number of lines dropped since the last line with this key; None if this line must be dropped."""
        last, dropped = self._keys.get(key, (-REPEAT_SECONDS, 0))
        if now - self._window >= REPEAT_SECONDS:
            self._window, self._lines = now, 0
        allowed = now - last >= REPEAT_SECONDS and self._lines < MAX_LINES
        self._keys[key] = (now, 0) if allowed else (last, dropped + 1)
        self._keys.move_to_end(key)
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        if not allowed:
            return None
        self._lines += 1
        return dropped


_limit = RateLimit()


@contextmanager
def load_stage(stage: Stage, source: str, adapter: str) -> Iterator[dict[str, Any]]:
    """Time a stage of loading `adapter`, and log its end or failure with the fields that are added to the dict."""
    fields: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        yield fields
    except MotetError as error:
        FAILURES.labels(stage, source, error.code or "unknown").inc()
        _log_failure(stage, adapter, error)
        raise
    seconds = time.perf_counter() - began
    STAGE_SECONDS.labels(stage, source).observe(seconds)
    line = logger.bind(adapter=adapter, seconds=round(seconds, 4), **fields)
    if stage == "resolve":  # once per request
        line.debug("adapter resolved")
    else:
        line.info(_DONE[stage])


def _log_failure(stage: Stage, adapter: str, error: MotetError) -> None:
    dropped = _limit.allows((stage, adapter, error.code), time.monotonic())
    if dropped is None:
        return
    fields: dict[str, Any] = {"adapter": adapter, "stage": stage, "code": error.code, "param": error.param}
    if dropped:
        fields["repeated"] = dropped
    level = "INFO" if error.status in _CALLER_STATUSES else "WARNING"
    refused = "refused" if error.status < 500 else "failed"
    logger.bind(**fields).log(level, "adapter load {}: {}", refused, " ".join(error.message.split()))
