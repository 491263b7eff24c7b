"""Decode steps as CUDA graphs: captured at start, one per batch size, and replayed for any mix of adapters.

A graph is a fixed list of kernels with fixed arguments. It fits every decode step, because all that differs between
steps is read from device memory at addresses that do not move: the staged numbers (engine/staging.py), the adapters'
tables (engine/lora/pool.py), the cache, and the ids that the last step sampled. A step of fewer sequences is padded:
the rows that are too many belong to no adapter and write to a cache block of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from motet.engine.schedule.plan import SequencePlan, StepPlan

GRAPH_BYTES = 16 << 20
"""Device memory of one graph, by estimate: its kernels and their arguments. All graphs share the memory of their
tensors."""

Recorder: TypeAlias = Callable[[Callable[[], Tensor | None]], "Recording"]
"""Runs a function once, and records its kernels."""


@dataclass(frozen=True)
class Recording:
    """Recorded work: `replay` runs it again, with its result in the same tensor (None on ranks without logits)."""

    replay: Callable[[], None]
    output: Tensor | None


def graph_sizes(max_sequences: int) -> list[int]:
    """The batch sizes to capture: 1, 2, 4, then in steps of 8 to 64, of 16 to 256, of 64 above, and `max_sequences`."""
    ladder = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_sequences, 64)]
    return [size for size in ladder if size < max_sequences] + [max_sequences]


def cuda_recorder(device: torch.device) -> Recorder:
    """A recorder of CUDA graphs, which share one memory pool, since only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Tensor | None]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog and the thread that installs adapters may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = work()
        torch.cuda.synchronize(device)
        return Recording(graph.replay, output)

    return record


class DecodeGraphs:
    """The recordings of decode steps, by their number of rows."""

    def __init__(self) -> None:
        self._recordings: dict[int, Recording] = {}
        self._sizes: list[int] = []

    def add(self, rows: int, recording: Recording) -> None:
        """Use `recording` for steps of up to `rows` rows."""
        self._recordings[rows] = recording
        self._sizes = sorted(self._recordings)

    def size_for(self, plan: StepPlan) -> int:
        """The smallest recorded number of rows that the plan fits into; 0 if it has to run eagerly."""
        if not self._sizes or not all(is_decode(sequence) for sequence in plan.sequences):
            return 0
        return next((rows for rows in self._sizes if rows >= len(plan.sequences)), 0)

    def outputs(self) -> Iterator[tuple[int, Tensor]]:
        """The recorded numbers of rows, each with its logits; the largest first. Only rank 0 has any."""
        for rows in reversed(self._sizes):
            if (logits := self._recordings[rows].output) is not None:
                yield rows, logits

    def replay(self, rows: int) -> Tensor | None:
        """Run a step of `rows` rows; returns its logits [rows, vocab] on rank 0, which the next replay overwrites."""
        recording = self._recordings[rows]
        recording.replay()
        return recording.output


def is_decode(sequence: SequencePlan) -> bool:
    """Whether a sequence computes one token and samples the next, and nothing else."""
    return len(sequence.tokens) == 1 and sequence.sample and not sequence.prompt_logprob_ids
