"""Attention over the paged cache, behind one small interface; a backend per device.

A backend owns the layout of its cache and gets the fused, rotated projections. Causality follows from the
context: a sequence's tokens see its cache up to themselves, at most `window` back where a layer has one.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.layers.forward_context import ForwardContext


@dataclass(frozen=True)
class CacheShape:
    """The key-value cache of one rank; `kv_heads` and `heads` are this rank's."""

    layers: int
    blocks: int
    block_size: int
    heads: int
    kv_heads: int
    head_dim: int


class AttentionBackend(ABC):
    """Stores keys and values, and attends. `name` is for log lines."""

    name: str

    @abstractmethod
    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        """Store the step's keys and values and attend. qkv [T, (H + 2 KV) D], result [T, H D]."""


class CpuAttention(AttentionBackend):
    """Single-token sequences walk their blocks in one kernel; longer chunks gather theirs and use SDPA."""

    name = "numba and sdpa"

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        size = (shape.layers, shape.blocks, shape.kv_heads, shape.block_size, shape.head_dim)
        self._keys = torch.empty(size)
        self._values = torch.empty(size)

    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        from motet.engine.kernels.cpu import decode_attention, store

        heads, size = self._shape.heads, self._shape.head_dim
        keys, values = self._keys[layer], self._values[layer]
        out = qkv.new_empty(qkv.shape[0], heads * size)
        store(qkv.numpy(), heads, context.cache_rows.numpy(), keys.numpy(), values.numpy())
        if context.decodes:
            tables, lengths = context.tables.numpy(), context.lengths.numpy()
            n = context.decodes
            decode_attention(
                qkv.numpy(), keys.numpy(), values.numpy(), tables[:n], lengths[:n], window, out[:n].numpy()
            )
        row = context.decodes
        for s in range(context.decodes, len(context.spans)):
            start, count = context.spans[s]
            chunk = slice(row, row + count)
            query = qkv[chunk, : heads * size].unflatten(1, (heads, size)).transpose(0, 1)
            key, value = (self._gather(cache, context.tables[s], start + count) for cache in (keys, values))
            mask = _chunk_mask(start, count, window) if start or window else None
            result = F.scaled_dot_product_attention(
                query[None], key[None], value[None], mask, is_causal=mask is None, enable_gqa=True
            )
            out[chunk] = result[0].transpose(0, 1).flatten(1)
            row += count
        return out

    def _gather(self, cache: Tensor, table: Tensor, length: int) -> Tensor:
        """A sequence's rows [KV, length, D] of one layer's cache."""
        blocks = table[: -(-length // self._shape.block_size)]
        return cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length]


def _chunk_mask(start: int, count: int, window: int) -> Tensor:
    """Which of the start + count keys each of the chunk's queries may see; bool [count, start + count]."""
    query = torch.arange(start, start + count)[:, None]
    key = torch.arange(start + count)[None, :]
    mask = key <= query
    return mask & (key > query - window) if window else mask


@functools.cache
def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's function for paged caches, or None where it cannot be imported: its log line says why.

    Another distribution, flash-attn-4, has the same package name without this function, and a build for another version
    of PyTorch fails while it is loaded.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except (ImportError, OSError) as error:
        logger.warning("flash-attn cannot be used: {}: {}", type(error).__name__, error)
        return None
    function: Callable[..., Tensor] = flash_attn_varlen_func
    return function


class FlashAttention(AttentionBackend):
    """flash-attn's variable-length kernel over a block table (Dao, "FlashAttention-2", 2023).

    Its paged cache is [blocks, block size, KV, D] with a block size that 256 divides.
    """

    name = "flash-attn"

    def __init__(self, shape: CacheShape, dtype: torch.dtype) -> None:
        self._shape = shape
        size = (shape.layers, shape.blocks, shape.block_size, shape.kv_heads, shape.head_dim)
        self._keys = torch.empty(size, dtype=dtype, device="cuda")
        self._values = torch.empty(size, dtype=dtype, device="cuda")

    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        attend = flash_attention()
        assert attend is not None, "attention_backend has checked it"
        heads, kv, size = self._shape.heads, self._shape.kv_heads, self._shape.head_dim
        query, key, value = qkv.unflatten(1, (heads + 2 * kv, size)).split((heads, kv, kv), dim=1)
        keys, values = self._keys[layer], self._values[layer]
        keys.flatten(0, 1).index_copy_(0, context.cache_rows, key.contiguous())
        values.flatten(0, 1).index_copy_(0, context.cache_rows, value.contiguous())
        starts = torch.zeros(len(context.lengths) + 1, dtype=torch.int32, device=qkv.device)
        starts[1:] = context.lengths.cumsum(0)
        result: Tensor = attend(
            query.contiguous(),
            keys,
            values,
            context.query_starts,
            starts,
            max(count for _, count in context.spans),
            max(start + count for start, count in context.spans),
            causal=True,
            window_size=(window - 1, 0) if window else (-1, -1),
            block_table=context.tables,
        )
        return result.flatten(1)


def attention_backend(shape: CacheShape, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backend for a device. Raises StartupError where flash-attn is missing."""
    if device.type == "cpu":
        return CpuAttention(shape)
    if flash_attention() is None:
        raise StartupError("--device cuda needs flash-attn; install it with `make install-cuda`", param="device")
    return FlashAttention(shape, dtype)
