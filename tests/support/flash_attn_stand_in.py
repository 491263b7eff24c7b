"""Stand-ins for flash-attn 2.8.3 and torch's varlen_attn: their signatures and checks, computed in fp32 on any device.

The checks are those of flash-attn's csrc/flash_attn/flash_api.cpp, which both compile. `calls` has a record of every
call, so that tests can see whether heads were packed.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

VARLEN_FUNC = inspect.signature(
    lambda q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
    causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None: None
)  # fmt: skip
WITH_KVCACHE = inspect.signature(
    lambda q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1),
    softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False: None
)  # fmt: skip
VARLEN_ATTN = inspect.signature(varlen.varlen_attn)


@dataclass(frozen=True)
class Call:
    """One call: which function, how many sequences, and whether the query heads of a group were packed."""

    name: str
    sequences: int
    packed: bool


@dataclass(frozen=True)
class Paged:
    """Sequences over a paged cache [blocks, block size, KV, D], as the functions describe them."""

    keys: Tensor
    values: Tensor
    block_table: Tensor
    lengths: list[int]

    def attend(self, queries: list[Tensor], window: tuple[int, int]) -> list[Tensor]:
        """queries [n, H, D] are the last tokens of each sequence; window as in flash-attn, -1 without an end."""
        return [self._attend(i, query, window) for i, query in enumerate(queries)]

    def _attend(self, i: int, query: Tensor, window: tuple[int, int]) -> Tensor:
        length, count, group = self.lengths[i], len(query), query.shape[1] // self.keys.shape[2]
        assert count <= length <= self.block_table.shape[1] * self.keys.shape[1]
        table = self.block_table[i].long()
        key, value = (
            cache[table].flatten(0, 1)[:length].float().repeat_interleave(group, 1)
            for cache in (self.keys, self.values)
        )
        scores = torch.einsum("qhd,khd->hqk", query.float(), key) / query.shape[-1] ** 0.5
        distance = torch.arange(length - count, length)[:, None] - torch.arange(length)[None]
        left, right = (end if end >= 0 else length for end in window)
        scores.masked_fill_((distance > left) | (-distance > right), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).to(query.dtype)


calls: list[Call] = []


def arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call by name, defaults included. Raises TypeError as the function would."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return types.SimpleNamespace(**bound.arguments)


def check_tensors(query: Tensor, cache: tuple[Tensor, Tensor], integers: dict[str, Tensor]) -> None:
    """What flash-attn checks of every call with a paged cache. `integers` has one row or number for each sequence."""
    keys, values = cache
    _, block_size, kv_heads, size = keys.shape
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert keys.dtype == values.dtype == query.dtype
    assert query.stride(-1) == keys.stride(-1) == values.stride(-1) == 1
    assert values.shape == keys.shape
    assert query.shape[-1] == size <= 256
    assert size % 8 == 0
    assert query.shape[-2] % kv_heads == 0
    assert block_size % 256 == 0, "Paged KV cache block size must be divisible by 256"
    for name, tensor in integers.items():
        assert tensor.dtype == torch.int32, f"{name} must have dtype int32"
        assert tensor.device == query.device == keys.device == values.device
        assert tensor.ndim == (2 if name == "block_table" else 1)
        assert tensor.stride(-1) == 1, f"{name} must be contiguous"


def record(name: str, query: Tensor, paged: Paged, max_seqlen_q: int, window: tuple[int, int]) -> None:
    """Note a call. Heads are packed as in `seqlenq_ngroups_swapped`."""
    packed = max_seqlen_q == 1 and query.shape[-2] > paged.keys.shape[2] and window == (-1, -1)
    calls.append(Call(name, len(paged.lengths), packed))


def queries_of(query: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> list[Tensor]:
    """The queries of each sequence."""
    lengths = cu_seqlens.diff().tolist()
    assert cu_seqlens[0] == 0
    assert 0 < max(lengths) <= max_seqlen
    return list(query.split(lengths))


def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> Tensor:
    """flash_attn_varlen_func with a block table."""
    given = arguments(VARLEN_FUNC, args, kwargs)
    integers = {name: getattr(given, name) for name in ("cu_seqlens_q", "cu_seqlens_k", "block_table")}
    check_tensors(given.q, (given.k, given.v), integers)
    assert len(given.cu_seqlens_q) == len(given.cu_seqlens_k) == len(given.block_table) + 1
    paged = Paged(given.k, given.v, given.block_table, given.cu_seqlens_k.diff().tolist())
    assert max(paged.lengths) <= given.max_seqlen_k
    left, right = given.window_size
    window = (left, 0) if given.causal and given.max_seqlen_q > 1 else (left, right)
    record("flash_attn_varlen_func", given.q, paged, given.max_seqlen_q, window)
    return torch.cat(paged.attend(queries_of(given.q, given.cu_seqlens_q, given.max_seqlen_q), window))


def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Tensor:
    """flash_attn_with_kvcache for new tokens that are in the cache already."""
    given = arguments(WITH_KVCACHE, args, kwargs)
    assert given.k is None
    assert given.v is None
    integers = {"cache_seqlens": given.cache_seqlens, "block_table": given.block_table}
    check_tensors(given.q, (given.k_cache, given.v_cache), integers)
    count, queries = given.q.shape[:2]
    assert len(given.cache_seqlens) == len(given.block_table) == count
    paged = Paged(given.k_cache, given.v_cache, given.block_table, given.cache_seqlens.tolist())
    left, right = given.window_size
    window = (left, 0) if given.causal and queries > 1 else (left, right)
    record("flash_attn_with_kvcache", given.q, paged, queries, window)
    return torch.stack(paged.attend(list(given.q), window))


def varlen_attn(*args: Any, **kwargs: Any) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn with a block table, by the signature of the installed torch."""
    given = arguments(VARLEN_ATTN, args, kwargs)
    names = ("cu_seq_q", "cu_seq_k", "seqused_k", "block_table")
    check_tensors(given.query, (given.key, given.value), {name: getattr(given, name) for name in names})
    assert given.num_splits == 1, "other numbers leave rows of a paged cache unwritten"
    assert given.enable_gqa
    assert given.return_aux is None
    assert len(given.cu_seq_q) == len(given.cu_seq_k) == len(given.block_table) + 1 == len(given.seqused_k) + 1
    paged = Paged(given.key, given.value, given.block_table, given.seqused_k.tolist())
    assert given.cu_seq_k.diff().tolist() == paged.lengths
    assert max(paged.lengths) <= given.max_k
    record("varlen_attn", given.query, paged, given.max_q, given.window_size)
    return torch.cat(paged.attend(queries_of(given.query, given.cu_seq_q, given.max_q), given.window_size))
