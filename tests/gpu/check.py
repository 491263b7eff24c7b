"""Checks Motet on this machine's GPUs and writes one report: `python -m gpu.check [REPORT]`, with tests/ on the path.

Every part is a process of its own with a time limit, since a kernel that fails makes CUDA unusable in its process.
What a part printed before it failed stays in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
ERROR_LINES = 30
"""Lines of a failed part's error output in the report."""


@dataclass(frozen=True)
class Part:
    """One part of the check: `name` is its module in gpu/parts, `seconds` its time limit."""

    name: str
    title: str
    seconds: float
    min_gpus: int = 1


PARTS = (
    Part("machine", "Machine, bandwidth and GEMM", 15),
    Part("lora", "LoRA kernels", 45),
    Part("quantised", "Quantised weights", 25),
    Part("attention", "Attention", 30),
    Part("elementwise", "Elementwise kernels", 15),
    Part("sampling", "Sampling kernels", 15),
    Part("oracle", "The engine against PEFT", 50),
    Part("step", "Steps of an 8B model with random weights", 110),
    Part("install", "Adapter installs", 25),
    Part("sanitizer", "compute-sanitizer", 30),
    Part("shards", "The engine against PEFT on several GPUs", 90, min_gpus=2),
)


@dataclass(frozen=True)
class Result:
    """How a part ended: `problem` is empty if it succeeded."""

    problem: str
    seconds: float


def run_part(part: Part, device: str, output: TextIO) -> Result:
    """Run one part and write what it prints to `output`, with its errors if it fails."""
    command = [sys.executable, "-m", "gpu.run_part", part.name, "--device", device]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that the processes that the part has started can be ended with it
    )
    problem = ""
    try:
        printed, errors = process.communicate(timeout=part.seconds)
    except subprocess.TimeoutExpired:
        problem = f"stopped after {part.seconds:.0f} s, its limit"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        printed, errors = process.communicate()
    if process.returncode and not problem:
        problem = f"failed with exit code {process.returncode}"
    output.write(printed)
    if problem:
        tail = "\n".join(errors.splitlines()[-ERROR_LINES:])
        output.write(f"\n**{part.title}: {problem}.**\n\n```text\n{tail}\n```\n")
    return Result(problem, time.monotonic() - began)


def gpu_count() -> int:
    """GPUs that nvidia-smi lists; 0 without nvidia-smi."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(listed.stdout.splitlines())


def check(parts: Sequence[Part], device: str, output: TextIO) -> bool:
    """Run the parts in turn and write the report to `output`; whether all of them succeeded."""
    results: dict[str, Result] = {}
    output.write("# GPU check\n")
    for part in parts:
        output.write(f"\n## {part.title}\n\n")
        results[part.title] = run_part(part, device, output)
        output.flush()
    output.write("\n## Summary\n\n| part | result | s |\n| --- | --- | --- |\n")
    for title, result in results.items():
        output.write(f"| {title} | {result.problem or 'done'} | {result.seconds:.1f} |\n")
    return not any(result.problem for result in results.values())


class _Both:
    """Writes to the terminal and to the report."""

    def __init__(self, report: TextIO) -> None:
        self._streams = (sys.stdout, report)

    def write(self, text: str) -> None:
        for stream in self._streams:
            stream.write(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


def main() -> int:
    """The command; its exit code is 1 if a part failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="gpu.check", description=__doc__)
    parser.add_argument("report", nargs="?", default="gpu-check.md", help="the report's file (default: %(default)s)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tiny sizes, to test the check")
    parser.add_argument("--parts", default="", help="comma-separated names of parts (default: all)")
    arguments = parser.parse_args()
    gpus = gpu_count()
    if arguments.device == "cuda" and not gpus:
        print("gpu-check: nvidia-smi lists no GPU; this check needs one", file=sys.stderr)
        return 2
    names = arguments.parts.split(",") if arguments.parts else [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(p.name for p in PARTS)}")
    parts = [part for part in PARTS if part.name in names and part.min_gpus <= max(gpus, 1)]
    path = Path(arguments.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as report:
        succeeded = check(parts, arguments.device, _Both(report))
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
