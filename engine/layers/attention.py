"""Attention over the paged key-value cache, with one backend per kind of device.

A backend owns the layout of its cache. It gets q, k and v in one tensor. A token sees its sequence up to itself, and in
layers with a sliding window at most the last `window` tokens.
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
from motet.engine.layers.forward_context import AttentionRows, ForwardContext, PromptChunk
from motet.engine.layers.rotary import RotaryTable


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
    def store(self, layer: int, qkv: Tensor, context: ForwardContext, rotary: RotaryTable | None) -> None:
        """Rotate the queries of qkv [T, (H + 2 KV) D] in place; store its keys, rotated, and its values.

        Without `rotary`, nothing is rotated. The keys in qkv have no meaning afterwards.
        """

    @abstractmethod
    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        """Attention [T, H D] of the queries in qkv, which `store` has rotated, over the cache."""


class CpuAttention(AttentionBackend):
    """Decode rows read their blocks in one Numba kernel; prompt chunks gather their blocks for PyTorch's SDPA."""

    name = "numba and sdpa"

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        size = (shape.layers, shape.blocks, shape.kv_heads, shape.block_size, shape.head_dim)
        self._keys = torch.empty(size)
        self._values = torch.empty(size)
        # Views of each layer, which take some time to make.
        self._arrays = list(zip(self._keys.numpy(), self._values.numpy(), strict=True))

    def store(self, layer: int, qkv: Tensor, context: ForwardContext, rotary: RotaryTable | None) -> None:
        """Rotate in place, then store."""
        from motet.engine.kernels.cpu import rotate, store_kv

        heads, array = self._shape.heads, qkv.numpy()
        if rotary is not None:
            rotated = heads + self._shape.kv_heads
            rotate(array, rotated, context.positions.numpy(), rotary.cos.numpy(), rotary.sin.numpy())
        store_kv(array, heads, context.slot_mapping.numpy(), *self._arrays[layer])

    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        """Decode rows by the kernel, each prompt chunk by SDPA."""
        from motet.engine.kernels.cpu import decode_attention

        heads, size = self._shape.heads, self._shape.head_dim
        out = qkv.new_empty(qkv.shape[0], heads * size)
        if n := context.num_decodes:
            block_tables, seq_lens = context.block_tables.numpy()[:n], context.seq_lens.numpy()[:n]
            decode_attention(qkv.numpy(), *self._arrays[layer], block_tables, seq_lens, window, out[:n].numpy())
        for chunk in context.prompt_chunks:
            query = qkv[chunk.rows, : heads * size].unflatten(1, (heads, size)).transpose(0, 1)
            key, value = _gather(self._keys[layer], chunk), _gather(self._values[layer], chunk)
            mask = chunk.mask(window)
            result = F.scaled_dot_product_attention(
                query[None], key[None], value[None], mask, is_causal=mask is None, enable_gqa=True
            )
            out[chunk.rows] = result[0].transpose(0, 1).flatten(1)
        return out


def _gather(cache: Tensor, chunk: PromptChunk) -> Tensor:
    """The chunk's sequence [KV, start + length, D] from one layer's cache."""
    return cache[chunk.block_table].transpose(0, 1).flatten(1, 2)[:, : chunk.start + chunk.length]


class CudaAttention(AttentionBackend):
    """A cache [blocks, block size, KV, D] with a block size that 256 divides, as flash-attn requires; bf16 or fp16.

    Decode rows and prompt chunks are computed by two calls: kernels can pack the query heads of a group, and split long
    contexts over the GPU, only in a batch of single queries.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = shape
        size = (2, shape.layers, shape.blocks, shape.block_size, shape.kv_heads, shape.head_dim)
        # Zeros: a kernel may multiply what lies beyond a sequence's end by 0, and 0 * NaN is NaN.
        keys, values = torch.zeros(size, dtype=dtype, device=device)
        self._caches = list(zip(keys, values, strict=True))

    def store(self, layer: int, qkv: Tensor, context: ForwardContext, rotary: RotaryTable | None) -> None:
        """Rotate and store in one kernel. Rows with a negative place in the slot mapping are not stored."""
        from motet.engine.kernels.gpu import rotate_and_store

        rotation = None if rotary is None else (rotary.cos, rotary.sin)
        rotate_and_store(qkv, context.positions, context.slot_mapping, rotation, *self._caches[layer])

    def __call__(self, layer: int, window: int, qkv: Tensor, context: ForwardContext) -> Tensor:
        """The decode rows first, then the prompt chunks."""
        heads, size = self._shape.heads, self._shape.head_dim
        query = qkv[:, : heads * size].unflatten(1, (heads, size))
        parts = [self._attend(query[rows.rows], self._caches[layer], rows, window) for rows in context.attention_rows]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)

    @abstractmethod
    def _attend(self, query: Tensor, cache: tuple[Tensor, Tensor], rows: AttentionRows, window: int) -> Tensor:
        """query [R, H, D] over one layer's keys and values; [R, H, D]."""


@dataclass(frozen=True)
class FlashFunctions:
    """flash-attn's functions: flash_attn_with_kvcache and flash_attn_varlen_func."""

    with_kvcache: Callable[..., Tensor]
    varlen: Callable[..., Tensor]


@functools.cache
def flash_attention() -> FlashFunctions | None:
    """flash-attn's functions for paged caches, or None if they cannot be imported; a log line says why.

    The distribution flash-attn-4 has the same package name without these functions, and a build for another version of
    PyTorch fails at import.
    """
    try:
        from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
    except (ImportError, OSError) as error:
        logger.warning(
            "flash-attn cannot be used ({}: {}), so attention runs on PyTorch's own kernel, which does not split a "
            "long context over the GPU: few sequences with long contexts decode more slowly; run `make install-cuda`",
            type(error).__name__,
            error,
        )
        return None
    return FlashFunctions(flash_attn_with_kvcache, flash_attn_varlen_func)


class FlashAttention(CudaAttention):
    """flash-attn 2 (Dao, "FlashAttention-2", 2023).

    Decode rows go through its function for caches, which splits long contexts with and without a window and takes
    the queries as they lie in qkv; prompt chunks through the one for sequences of different lengths.
    """

    name = "flash-attn"

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device, functions: FlashFunctions) -> None:
        super().__init__(shape, dtype, device)
        self._functions = functions

    def _attend(self, query: Tensor, cache: tuple[Tensor, Tensor], rows: AttentionRows, window: int) -> Tensor:
        # With a window, heads are not packed; so a window that hides nothing is left out.
        window_size = (window - 1, 0) if 0 < window < rows.max_seqlen_k else (-1, -1)
        if rows.max_seqlen_q == 1:
            return self._functions.with_kvcache(
                query[:, None],
                *cache,
                cache_seqlens=rows.seq_lens,
                block_table=rows.block_tables,
                causal=True,
                window_size=window_size,
            ).squeeze(1)
        return self._functions.varlen(
            query,
            *cache,
            rows.cu_seqlens_q,
            rows.cu_seqlens_k,
            rows.max_seqlen_q,
            rows.max_seqlen_k,
            causal=True,
            window_size=window_size,
            block_table=rows.block_tables,
        )


class VarlenAttention(CudaAttention):
    """The flash-attn 2 inside PyTorch: always there, and slower for few sequences with long contexts."""

    name = "torch's varlen_attn"

    def _attend(self, query: Tensor, cache: tuple[Tensor, Tensor], rows: AttentionRows, window: int) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        # (-1, 0) is causal. A single query sees everything anyway, and without a limit its heads are packed.
        everything = (-1, -1 if rows.max_seqlen_q == 1 else 0)
        out = varlen_attn(
            query,
            *cache,
            rows.cu_seqlens_q,
            rows.cu_seqlens_k,
            rows.max_seqlen_q,
            rows.max_seqlen_k,
            window_size=(window - 1, 0) if 0 < window < rows.max_seqlen_k else everything,
            enable_gqa=True,
            seqused_k=rows.seq_lens,
            block_table=rows.block_tables,
            num_splits=1,  # splits of a paged cache leave rows unwritten (pytorch/pytorch#194167)
        )
        assert isinstance(out, Tensor), "a tuple is returned only with return_aux"
        return out


def attention_backend(shape: CacheShape, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backend for a device. Raises StartupError if no CUDA kernel supports the model's head size."""
    if device.type == "cpu":
        return CpuAttention(shape)
    if shape.head_dim % 8 or shape.head_dim > 256:
        raise StartupError(
            f"the model's head size is {shape.head_dim}; attention on CUDA needs a multiple of 8, at most 256; "
            "use --device cpu",
            param="model",
        )
    functions = flash_attention()
    if functions is None:
        return VarlenAttention(shape, dtype, device)
    return FlashAttention(shape, dtype, device, functions)
