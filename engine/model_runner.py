"""Runs a step's plan on one rank: the model with its KV cache and adapters turns token ids into logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from motet.engine.checkpoint import Checkpoint
from motet.engine.decode_graphs import GRAPH_BYTES, DecodeGraphs, Recorder, graph_sizes
from motet.engine.device import resolve_dtype
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.largest_steps import largest_steps, plain_decodes
from motet.engine.layers.attention import CacheShape, attention_backend
from motet.engine.layers.forward_context import ForwardContext, Padding, forward_context
from motet.engine.layers.linear import attach_lora
from motet.engine.lora.pool import LoraPool, PoolSize
from motet.engine.lora.warm_up import warm_up
from motet.engine.memory import Capacity, CardUse, MemoryPlan, allocated_by, batch_tokens
from motet.engine.models.architectures import read_config
from motet.engine.models.decoder import Decoder, HiddenStates
from motet.engine.models.linear_specs import module_shapes
from motet.engine.sampling.prompt_logprobs import PromptLogprobs, prompt_logprobs_of
from motet.engine.sampling.sampler import Sampler
from motet.engine.schedule.batch import SchedulerConfig
from motet.engine.schedule.plan import SequencePlan, StepPlan
from motet.engine.staging import StagingBuffer

PROMPT_LOGPROB_ROWS = 64
"""Rows of logits [rows, vocab] that are in memory at once while prompt logprobs are computed."""


@dataclass(frozen=True)
class StagedStep:
    """A step's tensors. Token i is ids[i] [T], unless from_rows[i] says that it is the id that row rows[i] of the
    previous step sampled. `prompt_logprob_ids` [M] are the plan's. `num_samples` rows are sampled. If the step is a
    graph, it has `graph_rows` rows; 0: it runs eagerly."""

    num_samples: int
    graph_rows: int
    context: ForwardContext
    ids: Tensor
    rows: Tensor
    from_rows: Tensor
    prompt_logprob_ids: Tensor


@dataclass(frozen=True)
class StepOutput:
    """A step's results: fp32 logits [sample rows, vocab], the logprobs of the plan's `prompt_logprob_ids`, and the fp32
    last hidden states [rows, hidden] of the sequences with `pooling`. Logits and logprobs are None on other ranks than
    rank 0, and where no row needs them."""

    logits: Tensor | None
    prompt_logprobs: PromptLogprobs | None
    hidden_states: Tensor


class ModelRunner:
    """The model, the KV cache and the adapter pools of one rank."""

    def __init__(self, engine_config: EngineConfig, group: ShardGroup, device: torch.device) -> None:
        """Load the model. Raises StartupError if it cannot be served correctly."""
        self.group, self.device = group, device
        self.directory = Path(engine_config.directory)
        self.config = config = read_config(self.directory)
        config.check_shards(group.tp_size)
        self.dtype = resolve_dtype(engine_config, config, device)
        plan = MemoryPlan(engine_config, config, group, self.dtype, device)
        plan.check()
        self.quantization = plan.quantization
        self._decoder = Decoder(config, group, device, self.quantization)
        self._decoder.load(Checkpoint(self.directory, self.dtype, device))
        shapes = module_shapes(config, group)
        self.modules = [shape.name for fused in shapes.values() for shape in fused]
        limits = SchedulerConfig(batch_tokens(engine_config, device), engine_config.max_sequences, plan.longest_context)
        size = PoolSize(
            layers=config.num_layers,
            slots=engine_config.adapter_slots,
            pages=plan.pages,
            max_rank=engine_config.max_adapter_rank,
            max_tokens=limits.max_batch_tokens,
        )
        self.pool = LoraPool(shapes, size, device, self.dtype)
        attach_lora([layer.linears for layer in self._decoder.layers], self.pool)
        self.pages = plan.pages
        self.max_batch_tokens = limits.max_batch_tokens
        self.staging = StagingBuffer(staging_bytes(limits, plan.block_size), device)
        self._sampled = torch.zeros(engine_config.max_sequences, dtype=torch.int32, device=device)
        self._no_states = torch.empty(0, config.hidden_size, device=device)
        self.graphs = DecodeGraphs()
        has_graphs = device.type == "cuda" and not engine_config.enforce_eager
        self.graph_sizes = graph_sizes(min(limits.max_sequences, limits.max_batch_tokens)) if has_graphs else []
        use, reserve = None, 0
        if device.type == "cuda":  # the cache takes the memory that everything else leaves
            self._allocate_cache(Capacity(1, plan.block_size, plan.longest_context))
            torch.cuda.reset_peak_memory_stats(device)
            self.run_largest_steps(limits, engine_config.adapter_slots)
            use = CardUse.measure(device)
            reserve = self._graph_memory(limits)
        self._allocate_cache(plan.capacity(use, reserve))

    def _allocate_cache(self, capacity: Capacity) -> None:
        config, shards = self.config, self.group.tp_size
        shape = CacheShape(
            layers=config.num_layers,
            blocks=capacity.blocks + 1,  # the last one is for padding
            block_size=capacity.block_size,
            heads=config.num_heads // shards,
            kv_heads=config.kv_heads_per_rank(shards),
            head_dim=config.head_dim,
        )
        self.capacity = capacity
        self.attention = attention_backend(shape, self.device, self.dtype)

    def run_largest_steps(self, limits: SchedulerConfig, adapter_slots: int) -> None:
        """Run the steps that take the most memory, with their sampling; overwrites block 0 of the cache."""
        sampler = Sampler(self.config.vocab_size, self.device)
        for step in largest_steps(limits, self.capacity.block_size, adapter_slots):
            staged = self.stage(step.plan)
            batch = sampler.stage(step.rows, self.staging)
            logits = self.execute(staged).logits
            sampled = None if logits is None else sampler(logits, batch, {}).ids
            self.store_samples(len(step.rows), sampled)

    def _graph_memory(self, limits: SchedulerConfig) -> int:
        """Bytes that the graphs will take: their kernels, and the tensors of the largest step and of its draw.

        These tensors are in pools of their own, which eager steps cannot use.
        """
        if not self.graph_sizes:
            return 0
        step, sampler = plain_decodes(limits), Sampler(self.config.vocab_size, self.device)
        staged, batch = self.stage(step.plan), sampler.stage(step.rows, self.staging)
        logits, total = allocated_by(self.device, lambda: self.execute(staged).logits)
        if logits is not None:
            total += allocated_by(self.device, lambda: sampler(logits, batch, {}))[1]
        return total + len(self.graph_sizes) * GRAPH_BYTES

    def stage(self, plan: StepPlan, graph_rows: int | None = None) -> StagedStep:
        """Put the step's numbers into a new content of `staging`; the caller may add its own before `execute`.

        `graph_rows` is the number of rows to pad to; by default that of the graph that fits.
        """
        self.staging.begin()
        put, num_samples = self.staging.put, sum(s.sample for s in plan.sequences)
        graph_rows = self.graphs.size_for(plan) if graph_rows is None else graph_rows
        padding = self._padding(graph_rows) if graph_rows else None
        plan = padding.fill(plan) if padding else plan
        tokens = np.array([t for s in plan.sequences for t in s.tokens], np.int32)
        return StagedStep(
            num_samples=num_samples,
            graph_rows=graph_rows,
            context=forward_context(plan, self.capacity.block_size, self.staging, padding),
            ids=put(tokens, "int32"),
            rows=put(np.maximum(-1 - tokens, 0), "int32"),
            from_rows=put(tokens < 0, "bool"),
            prompt_logprob_ids=put([id for s in plan.sequences for id in s.prompt_logprob_ids], "int64"),
        )

    @torch.inference_mode()
    def execute(self, step: StagedStep) -> StepOutput:
        """Send what was staged, and begin the step."""
        self.staging.send()
        if step.graph_rows:
            padded = self.graphs.replay(step.graph_rows)
            logits = None if padded is None else padded[: step.num_samples]
            return StepOutput(logits, None, self._no_states)
        hidden = self._forward(step)
        logits = self._decoder.logits(hidden.sample)
        prompt_logprobs = self._prompt_logprobs(step.prompt_logprob_ids, hidden.prompt_logprobs)
        return StepOutput(logits, prompt_logprobs, hidden.pooling.float())

    def _forward(self, step: StagedStep) -> HiddenStates:
        ids = torch.where(step.from_rows, self._sampled.index_select(0, step.rows), step.ids)
        return self._decoder.forward(ids, step.context, self.attention)

    @torch.inference_mode()
    def record_graphs(self, sizes: list[int], record: Recorder, report: Callable[[int, int], None]) -> None:
        """Record a decode step of each of `sizes` rows, the largest first; `report(done, of)` is called after each."""
        # One buffer for all graphs: the graphs' pool could not use the memory of their results again.
        logits = torch.empty(max(sizes), self.config.vocab_size, device=self.device)
        for done, rows in enumerate(reversed(sizes), start=1):
            step = self.stage(StepPlan("", 0, (), ()), rows)
            self.staging.send()
            decode = functools.partial(self._decode, step, logits[:rows])
            decode()  # compiles and allocates what a graph may not
            self.graphs.add(rows, record(decode))
            report(done, len(sizes))

    def _decode(self, step: StagedStep, logits: Tensor) -> Tensor | None:
        return self._decoder.logits(self._forward(step).sample, logits)

    def _padding(self, rows: int) -> Padding:
        width = -(-self.capacity.max_context // self.capacity.block_size)
        return Padding(rows, width, scratch_block=self.capacity.blocks)

    def _prompt_logprobs(self, ids: Tensor, hidden: Tensor) -> PromptLogprobs | None:
        """The logprobs of `ids` [M], from a few rows of logits at a time."""
        parts = []
        for rows, row_ids in zip(hidden.split(PROMPT_LOGPROB_ROWS), ids.split(PROMPT_LOGPROB_ROWS), strict=True):
            logits = self._decoder.logits(rows)
            if logits is not None:
                parts.append(prompt_logprobs_of(logits, row_ids))
        return PromptLogprobs.joined(parts) if parts else None

    def store_samples(self, count: int, sampled: Tensor | None = None) -> None:
        """Store the step's sampled ids [count] (int32) for the next plan; rank 0 sends `sampled` to the other ranks."""
        ids = self._sampled[:count]
        if sampled is not None:
            ids.copy_(sampled)
        if count:
            self.group.broadcast(ids)

    def warm_up(self) -> None:
        """Compile the kernels, with a prompt and a decode step on empty state, so that no request waits for them."""
        prompt = SequencePlan((0, 0), 0, (0,), True)
        for sequence in (prompt, SequencePlan((0,), 2, (0,), True)):
            self.execute(self.stage(StepPlan("", 0, (sequence,), ())))
        warm_up(self.pool, self.staging)


def staging_bytes(limits: SchedulerConfig, block_size: int) -> int:
    """Room for the largest step, in bytes: some numbers of every token, and the block table of every sequence."""
    per_token, per_sequence = 64, 512 + 4 * -(-limits.max_context // block_size)
    sequences = min(limits.max_sequences, limits.max_batch_tokens)
    return (1 << 16) + limits.max_batch_tokens * per_token + sequences * per_sequence
