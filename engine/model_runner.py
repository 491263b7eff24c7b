"""The tensor side of one rank: a model, its cache and its adapters. Turns plans into logits; knows no requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.checkpoint import Checkpoint
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.layers.attention import CacheShape, attention_backend, flash_attention
from motet.engine.layers.forward_context import forward_context
from motet.engine.lora.apply import warm_up
from motet.engine.lora.pool import LoraPool, PoolSize
from motet.engine.memory import MemoryPlan
from motet.engine.models.config import ModelConfig, read_config
from motet.engine.models.decoder import Decoder, module_shapes
from motet.engine.sampling.prompt_logprobs import Scores, score
from motet.engine.schedule.plan import SequencePlan, StepPlan

SCORED_ROWS = 64
"""Rows of logits that exist at once for a prompt's logprobs; a row is the vocabulary's size."""


def resolve_device(engine_config: EngineConfig, rank: int) -> torch.device:
    """The rank's device; `auto` is CUDA where it can be used. Raises StartupError if CUDA is asked for and absent."""
    kind = engine_config.device
    if kind == "auto":
        usable = torch.cuda.is_available() and flash_attention() is not None
        if torch.cuda.is_available() and not usable:
            logger.warning("there is a GPU but no flash-attn, so the CPU is used; see `make install-cuda`")
        kind = "cuda" if usable else "cpu"
    if kind == "cuda" and torch.version.cuda is None:
        raise StartupError(
            "--device cuda: this PyTorch is built without CUDA; run `make install-cuda`, or leave --device at auto",
            param="device",
        )
    if kind == "cuda" and torch.cuda.device_count() <= rank:
        raise StartupError(
            f"--device cuda: rank {rank} needs a GPU of its own and {torch.cuda.device_count()} are visible to PyTorch "
            f"(built for CUDA {torch.version.cuda}); check the driver's version with nvidia-smi, or lower --shards",
            param="device",
        )
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)


def resolve_dtype(engine_config: EngineConfig, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The numbers to compute with. Raises StartupError for a combination that is not there."""
    if device.type == "cpu":
        if engine_config.dtype not in ("auto", "float32"):
            raise StartupError(
                f"--dtype {engine_config.dtype}: on the CPU the engine computes in float32; leave --dtype at auto",
                param="dtype",
            )
        return torch.float32
    if engine_config.dtype == "float32":
        raise StartupError(
            "--dtype float32: flash-attn computes in bfloat16 or float16; choose one of them", param="dtype"
        )
    if engine_config.dtype == "auto":
        return config.dtype if config.dtype == torch.float16 else torch.bfloat16
    return torch.bfloat16 if engine_config.dtype == "bfloat16" else torch.float16


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves on rank 0: fp32 logits [sample rows, vocab] (None if no row samples), the scores of the
    plan's `score` ids, and the fp32 last hidden states [rows, hidden] of the sequences to be pooled."""

    logits: Tensor | None
    prompt_logprobs: Scores | None
    hidden_states: Tensor


class ModelRunner:
    """Executes plans on one rank."""

    def __init__(self, engine_config: EngineConfig, group: ShardGroup, device: torch.device) -> None:
        """Load the model. Raises StartupError for whatever keeps it from being served right."""
        self.group, self.device = group, device
        self.directory = Path(engine_config.directory)
        self.config = config = read_config(self.directory)
        config.check_shards(group.size)
        self.dtype = resolve_dtype(engine_config, config, device)
        plan = MemoryPlan(engine_config, config, group, self.dtype, device)
        plan.check()
        self._decoder = Decoder(config, group, device)
        self._decoder.load(Checkpoint(self.directory, self.dtype, device))
        shapes = module_shapes(config, group)
        self.modules = [shape.name for fused in shapes for shape in fused]
        size = PoolSize(config.num_layers, engine_config.adapter_slots, plan.pages, engine_config.max_adapter_rank)
        self.pool = LoraPool(shapes, size, device, self.dtype)
        self._decoder.attach(self.pool)
        # Last, since it takes what the weights and the pool have left.
        self.capacity = plan.capacity()
        shape = CacheShape(
            layers=config.num_layers,
            blocks=self.capacity.blocks,
            block_size=self.capacity.block_size,
            heads=config.num_heads // group.size,
            kv_heads=config.num_kv_heads // group.size,
            head_dim=config.head_dim,
        )
        self.pages = plan.pages
        self.attention = attention_backend(shape, device, self.dtype)
        self._sampled = torch.zeros(engine_config.max_sequences, dtype=torch.long, device=device)

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
        targets = torch.tensor([id for s in plan.sequences for id in s.prompt_logprob_ids], device=self.device)
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
        warm_up(self.pool.layers[0])
