"""Attention over the paged key-value cache, with one backend per kind of device.

A backend owns the layout of its cache. It gets q, k and v in one tensor, already rotated. A token sees its sequence up
to itself, and in layers with a sliding window at most the last `window` tokens.
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
from motet.engine.layers.forward_context import ForwardContext, PromptChunk


@dataclass(frozen=True)
class CacheShape:
    """The sizes of one rank's key-value cache; `heads` and `kv_heads` are those of the rank's shard."""

    layers: int
    blocks: int
    block_size: int
    heads: int
    kv_heads: int
    head_dim: int


class AttentionBackend(ABC):
    """Stores keys and values in its cache and computes attention. `name` is for log lines."""

    name: str

    @abstractmethod
    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        """Store the step's keys and values and compute attention. qkv [T, (H + 2 KV) D], result [T, H D]."""


class CpuAttention(AttentionBackend):
    """Decode rows read their blocks in one Numba kernel; prompt chunks gather their blocks for PyTorch's SDPA."""

    name = "numba and sdpa"

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        size = (shape.layers, shape.blocks, shape.kv_heads, shape.block_size, shape.head_dim)
        self._keys = torch.empty(size)
        self._values = torch.empty(size)

    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        from motet.engine.kernels.cpu import decode_attention, store_kv

        heads, size = self._shape.heads, self._shape.head_dim
        keys, values = self._keys[layer], self._values[layer]
        out = qkv.new_empty(qkv.shape[0], heads * size)
        store_kv(qkv.numpy(), heads, context.slot_mapping.numpy(), keys.numpy(), values.numpy())
        if n := context.num_decodes:
            block_tables, seq_lens = context.block_tables.numpy()[:n], context.seq_lens.numpy()[:n]
            decode_attention(qkv.numpy(), keys.numpy(), values.numpy(), block_tables, seq_lens, window, out[:n].numpy())
        for chunk in context.prompt_chunks:
            query = qkv[chunk.rows, : heads * size].unflatten(1, (heads, size)).transpose(0, 1)
            key, value = _gather(keys, chunk), _gather(values, chunk)
            mask = chunk.mask(window)
            result = F.scaled_dot_product_attention(
                query[None], key[None], value[None], mask, is_causal=mask is None, enable_gqa=True
            )
            out[chunk.rows] = result[0].transpose(0, 1).flatten(1)
        return out


def _gather(cache: Tensor, chunk: PromptChunk) -> Tensor:
    """The chunk's sequence [KV, start + length, D] from one layer's cache."""
    return cache[chunk.block_table].transpose(0, 1).flatten(1, 2)[:, : chunk.start + chunk.length]


@functools.cache
def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's function for paged caches, or None if it cannot be imported; a log line says why.

    The distribution flash-attn-4 has the same package name without this function, and a build for another version of
    PyTorch fails at import.
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
        slot_mapping = context.slot_mapping.long()
        keys.flatten(0, 1).index_copy_(0, slot_mapping, key)
        values.flatten(0, 1).index_copy_(0, slot_mapping, value)
        out: Tensor = query.new_empty(query.shape)
        n = context.num_decodes
        # Packing the heads of a group and splitting long contexts needs a batch of single queries.
        for half, (rows, tables) in enumerate(((slice(n), slice(n + 1)), (slice(n, None), slice(n, None)))):
            if not context.max_seqlen_q[half]:
                continue
            out[rows] = attend(
                query[rows],
                keys,
                values,
                context.cu_seqlens_q[half],
                context.cu_seqlens_k[tables],
                context.max_seqlen_q[half],
                context.max_seqlen_k[half],
                causal=True,
                window_size=(window - 1, 0) if window else (-1, -1),
                block_table=context.block_tables[rows],
            )
        return out.flatten(1)


def attention_backend(shape: CacheShape, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backend for a device. Raises StartupError if flash-attn is missing on CUDA."""
    if device.type == "cpu":
        return CpuAttention(shape)
    if flash_attention() is None:
        raise StartupError("--device cuda needs flash-attn; install it with `make install-cuda`", param="device")
    return FlashAttention(shape, dtype)
