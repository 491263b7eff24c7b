"""The report of `motet bench`: throughput and latencies, computed from the outcomes of requests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from motet.api.bench.client import Outcome


class Spread(msgspec.Struct, frozen=True):
    """The distribution of durations, in milliseconds; all 0 without any."""

    mean: float
    p50: float
    p99: float


class Report(msgspec.Struct, frozen=True):
    """One run. Rates and token counts are those of completed requests; `seconds` is from first start to last end.

    `first_token_ms` is from sending to the first text, `between_tokens_ms` between consecutive events with text,
    `request_ms` from sending to the end. `client_cpu` is this program's share of one core: if it is not small, the
    client limits the result.
    """

    requests: int
    completed: int
    concurrency: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    requests_per_second: float
    first_token_ms: Spread
    between_tokens_ms: Spread
    request_ms: Spread
    client_cpu: float
    errors: dict[str, int]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted `values` lie, interpolated linearly; 0 for no values."""
    if not values:
        return 0.0
    place = share * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


def spread(seconds: Sequence[float]) -> Spread:
    """The spread of durations given in seconds."""
    ordered = sorted(1000 * s for s in seconds)
    return Spread(sum(ordered) / max(1, len(ordered)), percentile(ordered, 0.5), percentile(ordered, 0.99))


def make_report(outcomes: Sequence[Outcome], requests: int, concurrency: int, cpu_seconds: float) -> Report:
    """The report on `outcomes` of `requests` planned ones; the client used `cpu_seconds` of CPU time."""
    done = [o for o in outcomes if not o.error]
    seconds = max((o.end for o in outcomes), default=0.0) - min((o.start for o in outcomes), default=0.0)
    seconds = max(seconds, 1e-9)
    tokens = sum(o.output_tokens for o in done)
    return Report(
        requests=requests,
        completed=len(done),
        concurrency=concurrency,
        seconds=seconds,
        prompt_tokens=sum(o.prompt_tokens for o in done),
        output_tokens=tokens,
        output_tokens_per_second=tokens / seconds,
        requests_per_second=len(done) / seconds,
        first_token_ms=spread([o.arrivals[0] - o.start for o in done if o.arrivals]),
        between_tokens_ms=spread([later - sooner for o in done for sooner, later in pairwise(o.arrivals)]),
        request_ms=spread([o.end - o.start for o in done]),
        client_cpu=cpu_seconds / seconds,
        errors=dict(Counter(o.error for o in outcomes if o.error)),
    )


def as_text(report: Report) -> str:
    """The report as text for the terminal."""
    r, each = report, max(1, report.completed)
    lines = [
        f"{r.completed} of {r.requests} requests completed in {r.seconds:.2f} s, {r.concurrency} at a time",
        f"{r.prompt_tokens / each:.1f} tokens in and {r.output_tokens / each:.1f} out for each, on average",
        "",
        f"throughput   {r.output_tokens_per_second:10.1f} output tokens/s {r.requests_per_second:10.2f} requests/s",
        "",
        f"{'milliseconds':<16}{'mean':>10}{'p50':>10}{'p99':>10}",
    ]
    for name, s in (
        ("to first token", r.first_token_ms),
        ("between tokens", r.between_tokens_ms),
        ("whole request", r.request_ms),
    ):
        lines.append(f"{name:<16}{s.mean:>10.1f}{s.p50:>10.1f}{s.p99:>10.1f}")
    lines += ["", f"client       {100 * r.client_cpu:10.1f} % of a core"]
    lines += [f"failed       {count:10d} × {error}" for error, count in r.errors.items()]
    unsent = r.requests - r.completed - sum(r.errors.values())
    return "\n".join([*lines, *([f"not sent     {unsent:10d} (--timeout was reached)"] if unsent else [])])
