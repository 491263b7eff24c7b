"""The tensor side of one rank: a model, its cache and its adapters. Turns plans into logits; knows no requests."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from loguru import logger
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
from motet.engine.sampling.scores import Scores, score
from motet.engine.spec import EngineSpec

CPU_BLOCK, CUDA_BLOCK = 32, 256
"""Tokens in a cache block; flash-attn's paged cache wants multiples of 256."""

SCORED_ROWS = 64
"""Rows of logits that exist at once for a prompt's logprobs; a row is the vocabulary's size."""

CPU_CACHE_SHARE, CUDA_CACHE_SHARE = 0.1, 0.8
"""What the cache takes unless told: of the machine's memory, and of what a GPU has left (steps need some too)."""


@dataclass(frozen=True)
class Capacity:
    """The key-value cache: blocks and their size in tokens, and the longest context in tokens."""

    blocks: int
    block_size: int
    max_context: int


def resolve_device(spec: EngineSpec, rank: int) -> torch.device:
    """The rank's device; `auto` is CUDA where it can be used. Raises StartupError if CUDA is asked for and absent."""
    kind = spec.device
    if kind == "auto":
        usable = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
        if torch.cuda.is_available() and not usable:
            logger.warning("there is a GPU but no flash-attn, so the CPU is used; see `make install-cuda`")
        kind = "cuda" if usable else "cpu"
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
    if spec.dtype == "float32":
        raise StartupError("--dtype float32: flash-attn computes in bfloat16 or float16", param="dtype")
    if spec.dtype == "auto":
        return config.dtype if config.dtype == torch.float16 else torch.bfloat16
    return torch.bfloat16 if spec.dtype == "bfloat16" else torch.float16


def pool_pages(spec: EngineSpec, config: ModelConfig, group: ShardGroup, dtype: torch.dtype) -> int:
    """Pages that every module's adapter pool gets. Raises StartupError if that is less than one adapter takes."""
    page = page_bytes(module_shapes(config, group), dtype.itemsize)
    memory = spec.adapter_memory
    pages = spec.adapter_slots * config.num_layers if memory is None else memory // page
    if pages < config.num_layers:
        raise StartupError(
            f"--adapter-memory: {memory} bytes do not hold one adapter of rank 16; it takes {page * config.num_layers}",
            param="adapter_memory",
        )
    return pages


def cache_capacity(
    spec: EngineSpec, config: ModelConfig, group: ShardGroup, dtype: torch.dtype, device: torch.device
) -> Capacity:
    """The cache blocks that fit, equal on every rank. Raises StartupError if a setting leaves no room."""
    if spec.max_context > config.max_context:
        raise StartupError(
            f"--max-context {spec.max_context}: the model's context is {config.max_context}", param="max_context"
        )
    block_size = CPU_BLOCK if device.type == "cpu" else CUDA_BLOCK
    token = 2 * config.num_layers * (config.num_kv_heads // group.size) * config.head_dim * dtype.itemsize
    memory = spec.kv_memory
    if memory is None and device.type == "cuda":
        memory = int(torch.cuda.mem_get_info(device)[0] * CUDA_CACHE_SHARE)
    elif memory is None:
        memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_CACHE_SHARE)
    blocks = group.smallest(memory // (token * block_size))
    wanted = spec.max_context or config.max_context
    context = min(wanted, blocks * block_size)
    if context < (spec.max_context or 1):
        raise StartupError(
            f"--kv-memory: {memory} bytes hold {blocks * block_size} tokens and one request may need {wanted}; "
            f"give at least {token * (wanted + block_size)} bytes or lower --max-context",
            param="kv_memory",
        )
    # More than every sequence's whole context is never used.
    return Capacity(min(blocks, spec.sequences * -(-context // block_size)), block_size, context)


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves on rank 0: fp32 logits [sample rows, vocab] (None if no row samples), the scores of the
    plan's `score` ids, and the fp32 last hidden states [rows, hidden] of the sequences to be pooled."""

    logits: Tensor | None
    scores: Scores | None
    pooled: Tensor


class Runner:
    """Executes plans on one rank."""

    def __init__(self, spec: EngineSpec, group: ShardGroup, device: torch.device) -> None:
        """Load the model. Raises StartupError for whatever keeps it from being served right."""
        self.group, self.device = group, device
        self.directory = Path(spec.directory)
        self.config = config = read_config(self.directory)
        config.check_shards(group.size)
        self.dtype = resolve_dtype(spec, config, device)
        self._decoder = Decoder(config, group, device)
        self._decoder.load(Checkpoint(self.directory, self.dtype, device))
        pages = pool_pages(spec, config, group, self.dtype)
        shapes = module_shapes(config, group)
        self.modules = [shape.name for fused in shapes for shape in fused]
        size = PoolSize(config.num_layers, spec.adapter_slots, pages, spec.max_adapter_rank)
        self.pool = LoraPool(shapes, size, device, self.dtype)
        self._decoder.attach(self.pool)
        # Last, since it takes what the weights and the pool have left.
        self.capacity = cache_capacity(spec, config, group, self.dtype, device)
        shape = CacheShape(
            layers=config.num_layers,
            blocks=self.capacity.blocks,
            block_size=self.capacity.block_size,
            heads=config.num_heads // group.size,
            kv_heads=config.num_kv_heads // group.size,
            head_dim=config.head_dim,
        )
        self.pages = pages
        self.attention = attention_backend(shape, device, self.dtype)
        self._sampled = torch.zeros(spec.sequences, dtype=torch.long, device=device)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepOutput:
        """Run one step. The output's logits and scores are None everywhere but on rank 0."""
        ids = torch.tensor([t for s in plan.sequences for t in s.tokens], device=self.device)
        behind = ids < 0  # "what row j of the last step sampled"
        ids = torch.where(behind, self._sampled[torch.where(behind, -1 - ids, 0)], ids)
        context = forward_context(plan, self.capacity.block_size, self.device)
        hidden = self._decoder.forward(ids, context, self.attention)
        return StepOutput(self._decoder.logits(hidden.sample), self._scores(plan, hidden.score), hidden.pool.float())

    def _scores(self, plan: StepPlan, hidden: Tensor) -> Scores | None:
        """The scores of the plan's `score` ids, a few rows of logits at a time."""
        targets = torch.tensor([id for s in plan.sequences for id in s.score], device=self.device)
        parts = []
        for rows, wanted in zip(hidden.split(SCORED_ROWS), targets.split(SCORED_ROWS), strict=True):
            logits = self._decoder.logits(rows)
            if logits is not None:
                parts.append(score(logits, wanted))
        return Scores.joined(parts) if parts else None

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
