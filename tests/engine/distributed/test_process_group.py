"""Tensor parallelism: the shards of all ranks together equal the whole; collectives between real processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from loguru import logger
from safetensors.torch import save_file
from support.host_groups import free_ports
from torch import Tensor

from motet.engine.checkpoint import Checkpoint
from motet.engine.distributed.process_group import ShardGroup, join, leave, with_one_shot
from motet.engine.kernels.matmul import Weight
from motet.engine.layers.forward_context import ForwardContext, forward_context
from motet.engine.layers.linear import LinearSpec, ParallelLinear, Part
from motet.engine.layers.vocabulary import VocabularyShard
from motet.engine.lora.pool import LoraPool, PoolSize
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement, SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer

CPU = torch.device("cpu")
INPUTS, ROWS = 18, 40


@dataclass(frozen=True)
class LocalGroup(ShardGroup):
    """A rank whose collectives return its own part, so that the test can combine the parts."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """This rank's summand."""
        return x

    def gather_columns(self, x: Tensor) -> Tensor | None:
        """This rank's columns."""
        return x


def checkpoint(directory: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    """The tensors as a checkpoint."""
    save_file(tensors, directory / "model.safetensors")
    return Checkpoint(directory, torch.float32, CPU)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("split", ["column", "row"])
def test_linear_with_lora_over_ranks(split: Literal["column", "row"], size: int, tmp_path: Path) -> None:
    """Every rank adds its part of the LoRA delta before the sum, so that LoRA needs no collective."""
    torch.manual_seed(size)
    parts = (Part("q_proj", 24), Part("k_proj", 12))
    weights = {f"m.mlp.{p.name}.weight": torch.randn(p.outputs, INPUTS) for p in parts}
    biases = {f"m.mlp.{p.name}.bias": torch.randn(p.outputs) for p in parts}
    pairs = {p.name: (torch.randn(5, INPUTS), torch.randn(5, p.outputs)) for p in parts}
    x = torch.randn(ROWS, INPUTS)
    chunks = (LoraChunk(0, 0, 1), LoraChunk(0, 3, 1), LoraChunk(0, 10, 25))
    columns = []
    for p in parts:
        y = x @ weights[f"m.mlp.{p.name}.weight"].T + biases[f"m.mlp.{p.name}.bias"]
        a, b = pairs[p.name]
        for chunk in chunks:
            rows = slice(chunk.start, chunk.start + chunk.length)
            y[rows] += 1.5 * x[rows] @ a.T @ b
        columns.append(y)
    spec = LinearSpec("mlp", parts, INPUTS, split, bias=True)
    outputs = []
    for rank in range(size):
        group = LocalGroup(rank, size)
        linear = ParallelLinear(spec, group)
        linear.load(checkpoint(tmp_path, weights | biases), "m")
        linear.lora = installed_lora(spec, group, pairs)
        shard = x[:, group.slice(INPUTS)] if split == "row" else x
        outputs.append(linear(shard.contiguous(), context_with(chunks)))
    if split == "column":
        result = [torch.cat([piece(out, parts, i, size) for out in outputs], dim=1) for i in range(len(parts))]
    else:
        bias = torch.cat(list(biases.values()))
        result = list((sum(out - bias for out in outputs) + bias).split([p.outputs for p in parts], dim=1))
    for mine, expected in zip(result, columns, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def piece(out: Tensor, parts: tuple[Part, ...], index: int, size: int) -> Tensor:
    """A rank's columns of one part."""
    return out.split([p.outputs // size for p in parts], dim=1)[index]


def installed_lora(spec: LinearSpec, group: ShardGroup, pairs: dict[str, tuple[Tensor, Tensor]]):  # type: ignore[no-untyped-def]
    """This rank's pools with its shard of `pairs` in slot 0."""
    pool = LoraPool({"qk": spec.shapes(group)}, PoolSize(1, 1, 4, 16, ROWS), CPU, torch.float32)
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"0.{name}.A"] = a if spec.split == "column" else a[:, group.slice(a.shape[1])]
        tensors[f"0.{name}.B"] = b[:, group.slice(b.shape[1])] if spec.split == "column" else b
    placements = tuple(Placement(0, name, (2,), 5, 1.5) for name in pairs)
    command = InstallAdapter(0, "", (), placements)
    pool.copy(command, tensors)
    pool.point(command)
    return pool.layers[0]["qk"]


def context_with(chunks: tuple[LoraChunk, ...]) -> ForwardContext:
    """A context whose LoRA chunks are `chunks`."""
    plan = StepPlan("", 0, (SequencePlan((0,) * ROWS, 0, (0,), False),), chunks)
    return forward_context(plan, ROWS, StagingBuffer(1 << 16, CPU))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("vocab", [12, 13, 257])
def test_vocabulary_over_ranks(vocab: int, size: int, tmp_path: Path) -> None:
    """Also with a vocabulary that the ranks do not divide, so that the last share is padded."""
    table = torch.randn(vocab, INPUTS)
    ids, hidden = torch.arange(vocab).flip(0), torch.randn(4, INPUTS)
    shards = [VocabularyShard(vocab, INPUTS, LocalGroup(rank, size)) for rank in range(size)]
    files = checkpoint(tmp_path, {"e": table})
    tables = [shard.read(files, "e") for shard in shards]
    assert len({t.shape for t in tables}) == 1, "equal shares, so that gathering needs no sizes"
    embedded = sum(shard.embed(t, ids) for shard, t in zip(shards, tables, strict=True))
    assert torch.equal(embedded, table[ids])
    parts = [Weight(t)(hidden) for t in tables]
    logits = torch.cat(parts, dim=-1)[:, :vocab]
    torch.testing.assert_close(logits, hidden @ table.T, rtol=1e-5, atol=1e-5)


def test_slices_cover_everything_once() -> None:
    for size in (1, 2, 3, 4):
        covered = [i for rank in range(size) for i in range(24)[ShardGroup(rank, size).slice(24)]]
        assert covered == list(range(24))


@pytest.mark.parametrize(("kv_heads", "size"), [(1, 2), (1, 4), (2, 4), (2, 6), (4, 4), (8, 4)])
def test_ranks_have_the_key_value_heads_of_their_query_heads(kv_heads: int, size: int) -> None:
    """With 24 query heads: the key-value head of query head i is i * kv_heads // 24, as transformers repeats them."""
    for rank in range(size):
        group = ShardGroup(rank, size)
        needed = {i * kv_heads // 24 for i in range(24)[group.slice(24)]}
        head_of_row = [row // 5 for row in range(kv_heads * 5)]  # heads of 5 rows
        assert head_of_row[group.slice(kv_heads * 5, kv_heads)] == [head for head in sorted(needed) for _ in range(5)]


def collectives(rank: int, size: int, store: str) -> None:
    """Run by each process; a wrong result gives an exit code other than 0."""
    torch.set_num_threads(1)
    group = join(ShardGroup(rank, size), store, CPU)
    total = group.all_reduce(torch.full((3,), float(rank + 1)))
    assert total.tolist() == [float(sum(range(1, size + 1)))] * 3
    gathered = group.gather_columns(torch.full((2, 2), float(rank)).T)
    if rank == 0:
        assert gathered is not None
        assert gathered.tolist() == [[float(r) for r in range(size) for _ in range(2)]] * 2
    else:
        assert gathered is None
    ids = group.broadcast(torch.tensor([7, 8]) if rank == 0 else torch.zeros(2, dtype=torch.long))
    assert ids.tolist() == [7, 8]
    assert group.smallest(5 - rank) == 5 - (size - 1)
    leave()
    assert not torch.distributed.is_initialized()


def no_symmetric_memory(rank: int, size: int, store: str) -> None:
    """Run by each process: every rank goes on with the process group, and rank 0 says why in one line."""
    lines: list[str] = []
    logger.remove()
    logger.add(lines.append, format="{message}")
    group = with_one_shot(join(ShardGroup(rank, size), store, CPU), CPU)
    assert group.one_shot is None
    assert len(lines) == (1 if rank == 0 else 0)
    assert all("one-shot all-reduce does not work here: " in line for line in lines)
    assert group.all_reduce(torch.ones(4)).tolist() == [float(size)] * 4
    leave()


@pytest.mark.parametrize(
    ("work", "tcp"),
    [
        (collectives, False),
        pytest.param(no_symmetric_memory, False, marks=pytest.mark.slow),
        pytest.param(collectives, True, marks=pytest.mark.slow),
    ],
)
def test_collectives_between_processes(work: Callable[[int, int, str], None], tcp: bool, tmp_path: Path) -> None:
    store = f"tcp://127.0.0.1:{free_ports()}/engine" if tcp else str(tmp_path / "store")
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=work, args=(rank, 2, store)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]


def test_one_rank_needs_no_collective() -> None:
    group = join(ShardGroup(), "/nowhere", CPU)
    x = torch.ones(2)
    assert group.all_reduce(x) is x
    assert group.broadcast(x) is x
    assert group.gather_columns(x[None]) is not None
    assert group.smallest(3) == 3
    assert not torch.distributed.is_initialized()
