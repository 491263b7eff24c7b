"""compute-sanitizer's memory check over the LoRA and elementwise kernels at small sizes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from gpu.measuring import Bench, require

PARTS = ("lora", "elementwise")


def run(bench: Bench) -> None:
    """Print the last lines of each check. Raises AssertionError if one finds an error."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None or not bench.is_cuda:
        print("Not run: compute-sanitizer is not on PATH." if bench.is_cuda else "Not run: this needs a GPU.")
        return
    for part in PARTS:
        command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"]
        command += [sys.executable, "-m", "gpu.run_part", part, "--tiny"]
        # An allocation of its own for every tensor, so that the sanitizer sees where each one ends.
        env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
        print(f"\n{part}:\n\n```text\n" + "\n".join(lines[-12:]) + "\n```", flush=True)
        require(done.returncode == 0, f"{part}: exit code {done.returncode}\n{done.stderr[-2000:]}")
