"""The command `motet bench`: measures an OpenAI-compatible server over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from motet.api.bench.workload import DISTRIBUTIONS, Workload

if TYPE_CHECKING:
    from motet.api.bench.client import Target
    from motet.api.bench.report import Report

MAX_REQUESTS = 1_000_000
MAX_CONCURRENCY = 4096
MAX_TOKENS = 1 << 20


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `motet bench`."""
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server (default: %(default)s)")
    parser.add_argument("--model", default="", help="the base model's name (default: the first that it lists)")
    parser.add_argument(
        "--adapters", default="", metavar="NAME,...", help="adapters that requests use instead of the base model"
    )
    parser.add_argument(
        "--distribution",
        choices=DISTRIBUTIONS,
        help="the adapter of each request: none, the first (identical), each in turn (distinct), "
        "a random one (uniform), or one with a weight of 1/rank (zipf) (default: distinct if there are adapters)",
    )
    parser.add_argument("--chat", action="store_true", help="use /v1/chat/completions instead of /v1/completions")
    parser.add_argument(
        "--prompt-form",
        choices=("words", "ids"),
        default="words",
        help="prompts as words or as lists of token ids, which not all servers accept (default: %(default)s)",
    )
    _add_counts(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed sends the same requests (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=600.0, help="seconds for the whole run (default: %(default)g)"
    )
    parser.add_argument("--api-key", default="", help="sent as Authorization: Bearer")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_counts(parser: argparse.ArgumentParser) -> None:
    for flag, default, high, help in (
        ("--concurrency", 8, MAX_CONCURRENCY, "concurrent requests"),
        ("--requests", 32, MAX_REQUESTS, "total number of requests"),
        ("--prompt-tokens", 64, MAX_TOKENS, "length of each prompt"),
        ("--output-tokens", 64, MAX_TOKENS, "length of each answer (max_tokens, with ignore_eos)"),
    ):
        help = f"{help} (default: %(default)s)"
        parser.add_argument(flag, type=_between(1, high), default=default, metavar="N", help=help)


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in {low}..{high}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def run_bench(arguments: argparse.Namespace) -> None:
    """Measure and print the report. Exit code 1 if no request completed; raises StartupError if no server answers."""
    import msgspec

    from motet.api.bench.client import Target, first_model
    from motet.api.bench.report import as_text

    adapters = tuple(name.strip() for name in arguments.adapters.split(",") if name.strip())
    workload = Workload(
        model=arguments.model,
        adapters=adapters,
        distribution=arguments.distribution or ("distinct" if adapters else "none"),
        requests=arguments.requests,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        prompt_form=arguments.prompt_form,
        chat=arguments.chat,
        seed=arguments.seed,
    )
    target = Target(arguments.url, arguments.concurrency, arguments.timeout, arguments.api_key)

    async def run() -> Report:
        listed = await first_model(target)
        return await measure(target, dataclasses.replace(workload, model=workload.model or listed))

    report = asyncio.run(run())
    print(msgspec.json.encode(report).decode() if arguments.json else as_text(report))
    if not report.completed:
        raise SystemExit(1)


async def measure(target: Target, workload: Workload) -> Report:
    """Send `workload` to `target` and report. Failed requests are in the report and raise nothing."""
    from motet.api.bench.client import drive
    from motet.api.bench.report import make_report

    before = time.process_time()
    outcomes = await drive(target, workload)
    return make_report(outcomes, workload.requests, target.concurrency, time.process_time() - before)
