"""Benchmarks this machine: the server and a plain PEFT loop, LoRA and base, and memory over time.

`python -m tests.benchmarks.run` prints what docs/benchmarks.md quotes. Machines are noisy: measurements
alternate, are repeated several times, and their medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from motet.api.bench.client import Target, first_model
from motet.api.bench.command import measure
from motet.api.bench.report import Report
from motet.api.bench.workload import Distribution, Workload
from motet.core.paths import cache_directory
from motet.engine.models.convert_gguf import converted_directory
from motet.plugins.sources.smollm2 import NAME as SMOLLM2
from motet.plugins.sources.smollm2 import Smollm2
from tests.benchmarks.load import ADAPTERS, OUTPUT_TOKENS, PROMPT_TOKENS
from tests.benchmarks.served import Served, served

NAMES = tuple(f"local:{name}" for name in ADAPTERS)
FASTER_THAN_PEFT, LORA_COST, MEMORY_GROWTH = 2.5, 0.65, 0.05
FEW, MANY = 20, 200
"""The numbers of requests after which memory is measured."""


@dataclass(frozen=True)
class Case:
    """One workload: a row of the table."""

    title: str
    concurrency: int
    requests: int
    distribution: Distribution = "none"


BASE, LORA = Case("base, 8 at a time", 8, 16), Case("8 adapters, 8 at a time", 8, 16, "distinct")
CASES = (
    Case("base, 1 at a time", 1, 3),
    Case("1 adapter, 1 at a time", 1, 3, "identical"),
    BASE,
    LORA,
    Case("base, 32 at a time", 32, 64),
    Case("8 adapters (zipf), 32 at a time", 32, 64, "zipf"),
)


class PeftLoop:
    """The baseline's process, idle between measurements."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions: dict[str, str] = json.loads(self._read())

    def tokens_per_second(self) -> float:
        """Serve the workload once."""
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return len(ADAPTERS) * OUTPUT_TOKENS / float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise SystemExit("the PEFT loop failed; its message is above")


@contextmanager
def peft_loop(model: Path, root: Path) -> Iterator[PeftLoop]:
    """The started baseline, which has created the adapters under `root`."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.peft_loop", str(model), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield PeftLoop(process)
        finally:
            process.kill()


def ask(server: Served, model: str, case: Case, seed: int) -> Report:
    """One measurement. Ends the program if a request fails, since the figures would be meaningless."""
    workload = Workload(
        model=model,
        adapters=NAMES,
        distribution=case.distribution,
        requests=case.requests,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        prompt_form="ids",
        seed=seed,
    )
    report = asyncio.run(measure(Target(server.url, case.concurrency), workload))
    if report.errors or report.output_tokens != case.requests * OUTPUT_TOKENS:
        raise SystemExit(f"{case.title}: {report}")
    return report


def weigh(server: Served, model: str) -> str:
    """The memory table: after FEW and after MANY requests, half of them to the base and half to adapters."""
    sizes = []
    for done, until in ((0, FEW), (FEW, MANY)):
        half = (until - done) // 2
        for case in (Case("base", 8, half), Case("adapters", 8, half, "uniform")):
            ask(server, model, case, seed=10_000 + until)
        sizes.append(server.memory())
        say(f"memory after {until} requests: {sum(sizes[-1].values()):.0f} MiB")
    few, many = ({**size, "all processes": sum(size.values())} for size in sizes)
    lines = [f"| process | MiB after {FEW} requests | MiB after {MANY} | growth |", "|---|---|---|---|"]
    lines += [f"| {name} | {few[name]:.0f} | {many[name]:.0f} | {many[name] / few[name] - 1:+.1%} |" for name in few]
    growth = many["all processes"] / few["all processes"] - 1
    verdict = "met" if growth <= MEMORY_GROWTH else "missed"
    return "\n".join([*lines, "", f"Growth of the whole server at most {MEMORY_GROWTH:.0%}: {verdict}."])


def compare(server: Served, model: str, baseline: PeftLoop, rounds: int) -> str:
    """The throughput table and the two ratios that the server must reach."""
    peft: list[float] = []
    reports: dict[Case, list[Report]] = {case: [] for case in CASES}
    for round in range(rounds):
        peft.append(baseline.tokens_per_second())
        say(f"round {round + 1}: PEFT loop {peft[-1]:.1f} tokens/s")
        for i, case in enumerate(CASES):
            reports[case].append(ask(server, model, case, seed=100 * round + i))
            say(f"round {round + 1}: {case.title} {reports[case][-1].output_tokens_per_second:.1f} tokens/s")
    lines = [
        "| load | output tokens/s | (each round) | first token, ms | between tokens, ms | p99 | request, ms | p99 |",
        "|---|---|---|---|---|---|---|---|",
        f"| transformers + PEFT, one by one | {statistics.median(peft):.1f} | {spaced(peft)} | | | | | |",
    ]
    lines += [row(case, reports[case]) for case in CASES]
    base, lora = (statistics.median(r.output_tokens_per_second for r in reports[case]) for case in (BASE, LORA))
    return "\n".join(
        [
            *lines,
            "",
            verdict("8 adapters at once against the PEFT loop", lora / statistics.median(peft), FASTER_THAN_PEFT),
            verdict("8 adapters against the base, both 8 at a time", lora / base, LORA_COST),
            f"- the client took {max(r.client_cpu for rs in reports.values() for r in rs):.0%} of a core at most",
        ]
    )


def row(case: Case, reports: list[Report]) -> str:
    """A case's row: medians over rounds, of the medians and 99th percentiles over requests."""
    rates = [r.output_tokens_per_second for r in reports]
    times = [
        statistics.median(values)
        for values in (
            [r.first_token_ms.p50 for r in reports],
            [r.between_tokens_ms.p50 for r in reports],
            [r.between_tokens_ms.p99 for r in reports],
            [r.request_ms.p50 for r in reports],
            [r.request_ms.p99 for r in reports],
        )
    ]
    cells = [case.title, f"{statistics.median(rates):.1f}", spaced(rates), *(f"{t:.0f}" for t in times)]
    return f"| {' | '.join(cells)} |"


def spaced(rates: list[float]) -> str:
    """Several rates in one table cell."""
    return ", ".join(f"{rate:.1f}" for rate in rates)


def verdict(what: str, ratio: float, target: float) -> str:
    """A ratio and whether it reaches its target."""
    return f"- {what}: **{ratio:.2f}** (at least {target}: {'met' if ratio >= target else 'missed'})"


def machine() -> str:
    """The number of cores, and the vector instructions."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "no AVX2")
    return f"{os.cpu_count()} cores, {vectors}"


def say(line: str) -> None:
    """Print progress, which is not part of the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure everything and print it in Markdown."""
    parser = argparse.ArgumentParser(description="measure this machine, in Markdown")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default: 3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="motet-benchmark-") as scratch:
        root = Path(scratch) / "adapters"
        root.mkdir()
        with served(root, Path(scratch) / "server.log") as server:
            model = asyncio.run(first_model(Target(server.url)))
            directory = converted_directory(Smollm2().locate(SMOLLM2).path, cache_directory())
            with peft_loop(directory, root) as baseline:
                memory = weigh(server, model)
                speed = compare(server, model, baseline, rounds)
                versions = ", ".join(f"{name} {number}" for name, number in baseline.versions.items())
    print(f"{machine()}; fp32; {versions}; {PROMPT_TOKENS} tokens in and {OUTPUT_TOKENS} out for each request.\n")
    print(f"{speed}\n\n{memory}")


if __name__ == "__main__":
    main()
