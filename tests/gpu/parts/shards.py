"""All-reduce between 2 and between 4 GPUs, and the engine on them against transformers and PEFT."""

from __future__ import annotations

import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from gpu.measuring import Bench, Table, microseconds, relative_error, require
from gpu.parts.oracle import compare

from motet.engine.distributed.process_group import ShardGroup, join, leave

HIDDEN_SIZE = 4096


def run(bench: Bench) -> None:
    """Print tables for each number of shards that there are GPUs for."""
    for shards in (2, 4):
        if bench.tiny or shards <= torch.cuda.device_count():
            time_all_reduce(bench, shards)
            compare(bench, shards)


def time_all_reduce(bench: Bench, shards: int) -> None:
    """Print the table. Raises AssertionError if a rank gets a wrong sum."""
    print(f"\nAll-reduce between {shards} ranks of as many rows of {HIDDEN_SIZE} numbers as a decode step has.")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as path:
        store = str(Path(path) / "store")
        ranks = [spawn.Process(target=_time_rank, args=(bench, rank, shards, store)) for rank in range(shards)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    require(not any(process.exitcode for process in ranks), "a rank's sum is wrong, or it failed")


def _time_rank(bench: Bench, rank: int, size: int, store: str) -> None:
    """Time one rank's calls. NCCL's sum is the reference; each rank must get what rank 0 gets, in every bit."""
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    bench = replace(bench, device=torch.device("cuda", rank) if bench.is_cuda else bench.device)
    group = join(ShardGroup(rank, size), store, bench.device)
    plain = replace(group, one_shot=None)
    table = Table("rows", "KiB", "NCCL µs", "one-shot µs", "largest difference") if rank == 0 else None
    for rows in (1, 8, 32, 64):
        x = bench.random(rows, HIDDEN_SIZE)
        expected, result = plain.all_reduce(x.clone()), group.all_reduce(x.clone())
        difference = relative_error(result, expected)
        same = torch.equal(result, group.broadcast(result.clone()))
        seconds = bench.seconds(lambda: plain.all_reduce(x))  # noqa: B023
        one_shot = microseconds(bench.seconds(lambda: group.all_reduce(x))) if group.one_shot else None  # noqa: B023
        if table is not None:
            table.row(rows, x.nbytes / 1024, microseconds(seconds), one_shot, difference)
        require(same and difference < 0.02, f"{rows} rows: the sum differs by {difference:.2g}, or between the ranks")
    leave()
