"""The tensor side of one rank: a model, its cache and its adapters. Turns plans into logits; knows no requests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.context import forward_context
from motet.engine.layers.attention import CacheShape, attention_backend
from motet.engine.lora.pool import LoraPool, PoolSize, page_bytes
from motet.engine.models.checkpoint import Checkpoint
from motet.engine.models.config import ModelConfig, read_config
from motet.engine.models.decoder import Decoder, module_shapes
from motet.engine.parallel import ShardGroup
from motet.engine.plan import SequencePlan, StepPlan
from motet.engine.spec import EngineSpec

CPU_BLOCK, CUDA_BLOCK = 32, 256
"""Tokens in a cache block; flash-attn's paged cache wants multiples of 256."""


@dataclass(frozen=True)
class Capacity:
    """How much this rank holds: cache blocks and their size in tokens, pool pages a module, context in tokens."""

    blocks: int
    block_size: int
    pages: int
    max_context: int


def resolve_device(spec: EngineSpec, rank: int) -> torch.device:
    """The rank's device. Raises StartupError if CUDA is asked for and absent."""
    kind = spec.device if spec.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and torch.cuda.device_count() <= rank:
        raise StartupError(
            f"--device cuda: rank {rank} needs a GPU of its own and {torch.cuda.device_count()} are visible",
            param="device",
        )
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)


def resolve_dtype(spec: EngineSpec, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The numbers to compute with. Raises StartupError for a combination that is not there."""
    if device.type == "cpu":
        if spec.dtype not in ("auto", "float32"):
            raise StartupError(f"--dtype {spec.dtype}: on the CPU the engine computes in float32", param="dtype")
        return torch.float32
    named = {"bfloat16": torch.bfloat16, "float16": torch.float16, "auto": config.dtype}
    if named.get(spec.dtype) not in (torch.bfloat16, torch.float16):
        raise StartupError(
            f"--dtype {spec.dtype}: flash-attn computes in bfloat16 or float16; choose one of them", param="dtype"
        )
    return named[spec.dtype]


def capacity(spec: EngineSpec, config: ModelConfig, group: ShardGroup, device: torch.device) -> Capacity:
    """How many blocks and pages fit; equal on every rank. Raises StartupError if a setting leaves no room."""
    item = torch.finfo(resolve_dtype(spec, config, device)).bits // 8
    block_size = CPU_BLOCK if device.type == "cpu" else CUDA_BLOCK
    page = page_bytes(module_shapes(config, group), item)
    memory = spec.adapter_memory
    pages = spec.adapter_slots * config.num_layers if memory is None else memory // page
    if pages < config.num_layers:
        raise StartupError(
            f"--adapter-memory: {memory} bytes do not hold one adapter of rank 16; it takes {page * config.num_layers}",
            param="adapter_memory",
        )
    token = 2 * config.num_layers * (config.num_kv_heads // group.size) * config.head_dim * item
    available = spec.kv_memory
    if available is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if device.type == "cuda":
            available = int(torch.cuda.mem_get_info(device)[0] * 0.9) - page * pages
        else:
            available = total // 10
    blocks = available // (token * block_size)
    wanted = min(spec.max_context or config.max_context, config.max_context)
    if spec.max_context > config.max_context:
        raise StartupError(
            f"--max-context {spec.max_context}: the model's context is {config.max_context}",
            param="max_context",
        )
    context = min(wanted, blocks * block_size)
    if context < (spec.max_context or 1):
        raise StartupError(
            f"--kv-memory: {available} bytes hold {blocks * block_size} tokens and one request may need {wanted}; "
            f"give at least {token * (wanted + block_size)} bytes or lower --max-context",
            param="kv_memory",
        )
    # More than every sequence's whole context is never used.
    blocks = min(blocks, spec.sequences * -(-context // block_size))
    return Capacity(blocks, block_size, pages, context)


class Runner:
    """Executes plans on one rank."""

    def __init__(self, spec: EngineSpec, group: ShardGroup) -> None:
        """Load the model. Raises StartupError for whatever keeps it from being served right."""
        self.group = group
        self.device = resolve_device(spec, group.rank)
        self.directory = directory = Path(spec.directory)
        self.config = read_config(directory)
        self.config.check_shards(group.size)
        dtype = resolve_dtype(spec, self.config, self.device)
        self.dtype = dtype
        self.capacity = capacity(spec, self.config, group, self.device)
        self._decoder = Decoder(self.config, group, self.device)
        self._decoder.load(Checkpoint(directory, dtype, self.device))
        size = PoolSize(self.config.num_layers, spec.adapter_slots, self.capacity.pages, spec.max_adapter_rank)
        self.modules = [s.name for shapes in module_shapes(self.config, group) for s in shapes]
        self.pool = LoraPool(module_shapes(self.config, group), size, self.device, dtype)
        self._decoder.attach(self.pool)
        shape = CacheShape(
            layers=self.config.num_layers,
            blocks=self.capacity.blocks,
            block_size=self.capacity.block_size,
            heads=self.config.num_heads // group.size,
            kv_heads=self.config.num_kv_heads // group.size,
            head_dim=self.config.head_dim,
        )
        self._attention = attention_backend(shape, self.device, dtype)
        self._sampled = torch.zeros(spec.sequences, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> Tensor | None:
        """Run one step; fp32 logits [sample rows, vocab] on rank 0, None elsewhere."""
        ids = torch.tensor([t for s in plan.sequences for t in s.tokens], device=self.device)
        behind = ids < 0  # "what row j of the last step sampled"
        ids = torch.where(behind, self._sampled[torch.where(behind, -1 - ids, 0)], ids)
        context = forward_context(plan, self.capacity.block_size, self.device)
        return self._decoder.forward(ids, context, self._attention)

    def share(self, tokens: list[int], count: int) -> None:
        """Keep the step's `count` sampled ids for the next plan: rank 0 passes them, the others receive them."""
        if not count:
            return
        fresh = torch.tensor(tokens, device=self.device) if tokens else self._sampled.new_empty(count)
        self._sampled[:count] = self.group.broadcast(fresh)

    def warm_up(self) -> None:
        """Run a prompt and a decode step on empty state, so that kernels are compiled before the first request."""
        prompt = SequencePlan((0, 0), 0, (0,), True)
        self.execute(StepPlan("", 0, (prompt,), ()))
        self.execute(StepPlan("", 0, (SequencePlan((0,), 2, (0,), True),), ()))
        self.pool.warm_up()
