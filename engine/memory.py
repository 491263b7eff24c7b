"""Divides a rank's memory between the weights, the adapters' pools and the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from motet.core.errors import StartupError
from motet.core.machine_limits import memory_bytes
from motet.core.settings import flag
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.kernels.quantized_weight import weight_bytes
from motet.engine.lora.pool import page_bytes
from motet.engine.models.architectures import ModelConfig
from motet.engine.models.linear_specs import module_shapes
from motet.engine.models.quantization import check_shapes, resolve_quantization
from motet.engine.schedule.adapter_slots import PAGE_ROWS
from motet.engine.schedule.kv_block_manager import CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE

Result = TypeVar("Result")

CPU_CACHE_SHARE = 0.1
"""The cache's default share of the machine's memory."""

CPU_ADAPTER_SHARE = 0.25
"""The largest default share of the machine's memory for the adapters of all ranks."""


CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 512, 2048
"""The default of --max-batch-tokens. A GPU needs more tokens than a CPU until products are limited by arithmetic."""


def batch_tokens(engine_config: EngineConfig, device: torch.device) -> int:
    """The most tokens in one step."""
    default = CPU_BATCH_TOKENS if device.type == "cpu" else CUDA_BATCH_TOKENS
    return default if engine_config.max_batch_tokens is None else engine_config.max_batch_tokens


@dataclass(frozen=True)
class CardUse:
    """Bytes of one GPU: its `total`, the `peak` of what PyTorch had allocated, and what CUDA, NCCL and other programs
    have."""

    total: int
    peak: int
    others: int

    @classmethod
    def measure(cls, device: torch.device) -> CardUse:
        """The use since the last torch.cuda.reset_peak_memory_stats. Waits for the device."""
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        return cls(total, torch.cuda.max_memory_allocated(device), others)

    def rest(self, fraction: float) -> int:
        """What this leaves of `fraction` of the card; negative if it is too much already."""
        return int(self.total * fraction) - self.peak - self.others


def allocated_by(device: torch.device, work: Callable[[], Result]) -> tuple[Result, int]:
    """What `work` returns, and the bytes of a GPU that PyTorch allocated for it at most, beside those from before."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = work()
    return result, torch.cuda.max_memory_allocated(device) - before


@dataclass(frozen=True)
class Capacity:
    """The KV cache: blocks, tokens per block, and the tokens of the longest context."""

    blocks: int
    block_size: int
    max_context: int


class MemoryPlan:
    """The sizes for one rank; `pages` are the pages of every module's adapter pool."""

    def __init__(
        self,
        engine_config: EngineConfig,
        config: ModelConfig,
        group: ShardGroup,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raises StartupError if --adapter-memory is too small for one adapter."""
        self._engine_config, self._config, self._group, self._device = engine_config, config, group, device
        self._machine = memory_bytes()
        self._shapes = module_shapes(config, group)
        self._page_bytes = page_bytes(self._shapes, dtype.itemsize)
        self._item_bytes = dtype.itemsize
        self.quantization = resolve_quantization(engine_config.quantize, config.stored_quantization, device, dtype)
        check_shapes(self.quantization, self._shapes.values())
        self.block_size = CPU_BLOCK_SIZE if device.type == "cpu" else CUDA_BLOCK_SIZE
        heads = config.kv_heads_per_rank(group.tp_size)
        self._token_bytes = 2 * config.num_layers * heads * config.head_dim * dtype.itemsize
        self.pages = self._pages()

    def check(self) -> None:
        """Raise StartupError if weights, adapters and cache do not fit into memory together. Call it before loading."""
        available = self._available()
        cache_memory = self._cache_memory()
        blocks = 0 if cache_memory is None else self._blocks(cache_memory // (self._token_bytes * self.block_size))
        weights, adapters = self._weights(), self.pages * self._page_bytes
        cache = blocks * self.block_size * self._token_bytes
        if weights + adapters + cache <= available:
            return
        name, remedy = "model", "choose a smaller model, or a machine or container with more memory"
        if weights < available and cache >= adapters:
            name, remedy = "kv_memory", "lower --kv-memory or --max-sequences"
        elif weights < available:
            name, remedy = "adapter_memory", "lower --adapter-memory or --adapter-slots"
        raise StartupError(
            f"{flag(name)}: each rank needs about {_format_size(weights)} for weights, {_format_size(adapters)} for "
            f"adapters and {_format_size(cache)} for the key-value cache, and {_format_size(available)} are available; "
            f"{remedy}",
            param=name,
        )

    @property
    def longest_context(self) -> int:
        """The tokens of the longest context, if the cache is large enough."""
        return self._engine_config.max_context or self._config.max_context

    def capacity(self, use: CardUse | None = None, reserve: int = 0) -> Capacity:
        """The cache that fits, equal on every rank. Raises StartupError if it is too small for the settings.

        On CUDA, `use` has the memory that the largest steps take, and `reserve` the bytes that something else will take
        later.
        """
        engine_config, config = self._engine_config, self._config
        if engine_config.max_context > config.max_context:
            raise StartupError(
                f"--max-context {engine_config.max_context}: the model's context is {config.max_context}; "
                f"set at most {config.max_context}, or 0 for all of it",
                param="max_context",
            )
        memory = self._cache_memory()
        if use is not None:
            memory = self._cache_on_card(memory, use, reserve)
        assert memory is not None, "on CUDA, the use of the card is known"
        blocks = self._group.smallest(memory // (self._token_bytes * self.block_size))
        context = self._context(blocks)
        if context < (engine_config.max_context or 1):
            required = engine_config.max_context or config.max_context
            raise StartupError(
                f"--kv-memory: {memory} bytes are enough for {blocks * self.block_size} tokens, and one request may "
                f"need {required}; set at least {self._token_bytes * (required + self.block_size)} bytes, or lower "
                "--max-context",
                param="kv_memory",
            )
        return Capacity(self._blocks(blocks), self.block_size, context)

    def _cache_on_card(self, memory: int | None, use: CardUse, reserve: int) -> int:
        """Bytes for the cache on a GPU: `memory` if it is set and fits, else all that --memory-fraction allows."""
        fraction = self._engine_config.memory_fraction
        block = self._token_bytes * self.block_size
        if memory is None:
            rest = use.rest(fraction) - reserve
            if rest < block:
                raise StartupError(
                    f"--memory-fraction {fraction:g}: weights, adapters and the largest step take "
                    f"{_format_size(use.peak + reserve)} of {_format_size(use.total)}, and "
                    f"{_format_size(use.others)} are used outside this process's PyTorch, so nothing is left for the "
                    "key-value cache; lower --adapter-slots, --max-batch-tokens or --max-sequences, or raise --shards",
                    param="memory_fraction",
                )
            return rest
        rest = use.rest(1.0) - reserve
        if self._blocks(memory // block) * block > rest:
            raise StartupError(
                f"--kv-memory: {_format_size(memory)} for the key-value cache, but weights, adapters and the largest "
                f"step leave {_format_size(max(0, rest))} of {_format_size(use.total)}; lower it, or leave it at auto",
                param="kv_memory",
            )
        return memory

    def _pages(self) -> int:
        memory, layers = self._engine_config.adapter_memory, self._config.num_layers
        if memory is None:
            pages = self._engine_config.adapter_slots * layers
            if self._device.type == "cpu":
                share = self._machine * CPU_ADAPTER_SHARE / self._engine_config.local_shards
                pages = min(pages, int(share) // self._page_bytes)
            return max(pages, layers)
        if memory // self._page_bytes < layers:
            raise StartupError(
                f"--adapter-memory: {memory} bytes are too few for one adapter of rank {PAGE_ROWS}; "
                f"set at least {self._page_bytes * layers} bytes",
                param="adapter_memory",
            )
        return memory // self._page_bytes

    def _cache_memory(self) -> int | None:
        """Bytes for the cache; None if they depend on the free GPU memory."""
        if self._engine_config.kv_memory is None and self._device.type == "cpu":
            return int(self._machine * CPU_CACHE_SHARE)
        return self._engine_config.kv_memory

    def _context(self, blocks: int) -> int:
        return min(self.longest_context, blocks * self.block_size)

    def _blocks(self, blocks: int) -> int:
        """`blocks`, or fewer if fewer are enough for the longest context of every sequence."""
        return min(blocks, self._engine_config.max_sequences * -(-self._context(blocks) // self.block_size))

    def _weights(self) -> int:
        """Bytes of the weights on this rank, without norms and biases."""
        config = self._config
        modules = [shape for shapes in self._shapes.values() for shape in shapes]
        layer = sum(weight_bytes(self.quantization, m.outputs, m.inputs, self._item_bytes) for m in modules)
        vocabulary = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
        return config.num_layers * layer + vocabulary // self._group.tp_size * self._item_bytes

    def _available(self) -> int:
        """Bytes that this rank can use: CPU ranks share the machine's memory, and each GPU has its own."""
        if self._device.type == "cpu":
            return self._machine // self._engine_config.local_shards
        return int(torch.cuda.mem_get_info(self._device)[0])


def _format_size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"
