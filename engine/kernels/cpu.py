"""CPU kernels, compiled by Numba: norm, activation, rotation, cache writes, decode attention, LoRA rows.

Each kernel computes row by row (a row is one token), in an order that does not depend on the other rows. So a row has
the same bits alone and in any batch, which PyTorch's own elementwise and reduction loops do not promise. Arrays are
C-contiguous float32 unless stated otherwise; T is tokens, H heads, KV key-value heads, D head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads

from motet.engine.kernels.kernel_cache import check_cached_kernels

_FAST = {"reassoc", "contract", "nsz"}
_SMALL = 1 << 16
"""Array elements below which waking a second thread costs more time than it saves."""

_THREADS = _current = get_num_threads()


def row_kernel(work: Callable[..., int], fastmath: Any = _FAST) -> Callable[[Any], Any]:
    """Compile a row kernel, and run it on one thread if `work(*arguments)`, its elements, are few.

    The compiled code is the same for any number of threads, so the number of threads does not change the bits.
    """

    def decorate(function: Any) -> Any:
        compiled = njit(parallel=True, fastmath=fastmath, cache=True)(function)
        check_cached_kernels(compiled)

        @functools.wraps(function)
        def run(*arguments: Any) -> None:
            global _current
            threads = 1 if work(*arguments) < _SMALL else _THREADS
            if threads != _current:
                set_num_threads(threads)
                _current = threads
            compiled(*arguments)

        return run

    return decorate


def _array_elements(array: Any, *_: Any) -> int:
    return int(array.size)


def _context_elements(qkv: Any, keys: Any, values: Any, block_tables: Any, seq_lens: Any, window: int, out: Any) -> int:
    return int(seq_lens.sum() * out.shape[1])


def _lora_elements(x: Any, y: Any, rows: Any, slots: Any, pools: Any, tables: Any, page_rows: int) -> int:
    return int(rows.size * (x.shape[1] + y.shape[1]) * page_rows) if rows.size > 1 else 0


@row_kernel(_array_elements)
def rms_norm(x, weight, eps, out):
    """out[T, n] = x / rms(x) * weight, one row at a time (Zhang and Sennrich, "RMSNorm", 2019)."""
    for t in prange(x.shape[0]):
        row = x[t]
        total = np.float32(0)
        for j in range(row.shape[0]):
            total += row[j] * row[j]
        factor = np.float32(1.0 / math.sqrt(total / row.shape[0] + eps))
        for j in range(row.shape[0]):
            out[t, j] = weight[j] * (row[j] * factor)


@row_kernel(_array_elements)
def add_rms_norm(x, residual, weight, eps, out):
    """residual += x, then out = rms_norm(residual)."""
    for t in prange(x.shape[0]):
        row = residual[t]
        total = np.float32(0)
        for j in range(row.shape[0]):
            value = row[j] + x[t, j]
            row[j] = value
            total += value * value
        factor = np.float32(1.0 / math.sqrt(total / row.shape[0] + eps))
        for j in range(row.shape[0]):
            out[t, j] = weight[j] * (row[j] * factor)


@row_kernel(_array_elements)
def head_norm(x, first, heads, weight, eps):
    """RMS-normalise `heads` heads of size len(weight) in place, from column `first` of x[T, n]."""
    size = weight.shape[0]
    for t in prange(x.shape[0]):
        for h in range(heads):
            row = x[t, first + h * size : first + (h + 1) * size]
            total = np.float32(0)
            for j in range(size):
                total += row[j] * row[j]
            factor = np.float32(1.0 / math.sqrt(total / size + eps))
            for j in range(size):
                row[j] = weight[j] * (row[j] * factor)


@row_kernel(_array_elements)
def silu_mul(gate_up, out):
    """out[T, n] = silu(gate) * up for gate_up[T, 2n] (Shazeer, "GLU variants", 2020)."""
    n = out.shape[1]
    for t in prange(out.shape[0]):
        for j in range(n):
            gate = gate_up[t, j]
            out[t, j] = gate / (np.float32(1) + math.exp(-gate)) * gate_up[t, n + j]


@row_kernel(_array_elements)
def rotate(qkv, heads, positions, cos, sin):
    """Rotate the first `heads` heads of every row of qkv[T, (H + 2 KV) D] in place, halves as in transformers."""
    half = cos.shape[1]
    for t in prange(qkv.shape[0]):
        p = positions[t]
        for h in range(heads):
            low = qkv[t, 2 * h * half : (2 * h + 1) * half]
            high = qkv[t, (2 * h + 1) * half : (2 * h + 2) * half]
            for j in range(half):
                a, b = low[j], high[j]
                low[j] = a * cos[p, j] - b * sin[p, j]
                high[j] = b * cos[p, j] + a * sin[p, j]


@row_kernel(_array_elements, fastmath=False)
def store_kv(qkv, heads, slot_mapping, keys, values):
    """Copy each row's keys and values into the caches [blocks, KV, block size, D], at flat row slot_mapping[t]."""
    kv_heads, block_size, size = keys.shape[1], keys.shape[2], keys.shape[3]
    for t in prange(qkv.shape[0]):
        block = slot_mapping[t] // block_size
        offset = slot_mapping[t] % block_size
        for h in range(kv_heads):
            k = (heads + h) * size
            v = (heads + kv_heads + h) * size
            for j in range(size):
                keys[block, h, offset, j] = qkv[t, k + j]
                values[block, h, offset, j] = qkv[t, v + j]


@row_kernel(_context_elements)
def decode_attention(qkv, keys, values, block_tables, seq_lens, window, out):
    """One query token per sequence against its paged context.

    Row s of `qkv` belongs to the sequence with block table block_tables[s] and seq_lens[s] tokens (its own included);
    `window` limits how far back it looks (0: to the start). out is [S, H D].
    """
    kv_heads, block_size, size = keys.shape[1], keys.shape[2], keys.shape[3]
    group = out.shape[1] // size // kv_heads
    scale = np.float32(1.0 / math.sqrt(size))
    for item in prange(block_tables.shape[0] * kv_heads):
        s, kv = item // kv_heads, item % kv_heads
        length = seq_lens[s]
        first = max(0, length - window) if window > 0 else 0
        scores = np.empty((group, length - first), np.float32)
        for p in range(first, length):
            key = keys[block_tables[s, p // block_size], kv, p % block_size]
            for g in range(group):
                query = qkv[s, (kv * group + g) * size : (kv * group + g + 1) * size]
                dot = np.float32(0)
                for j in range(size):
                    dot += query[j] * key[j]
                scores[g, p - first] = dot * scale
        for g in range(group):
            row = scores[g]
            highest = row[0]
            for p in range(1, row.shape[0]):
                highest = max(highest, row[p])
            total = np.float32(0)
            for p in range(row.shape[0]):
                row[p] = np.float32(math.exp(row[p] - highest))
                total += row[p]
            for p in range(row.shape[0]):
                row[p] /= total
        result = out[s, kv * group * size : (kv + 1) * group * size]
        for j in range(result.shape[0]):
            result[j] = np.float32(0)
        for p in range(first, length):
            value = values[block_tables[s, p // block_size], kv, p % block_size]
            for g in range(group):
                weight = scores[g, p - first]
                for j in range(size):
                    result[g * size + j] += weight * value[j]


@row_kernel(_lora_elements)
def lora_rows(x, y, rows, slots, pools, tables, page_rows):
    """y[row] += scale * (x[row] A) B for single rows, each with the adapter in its own slot. A row of -1 is skipped.

    pools = (A, B): tuples of [pool rows, in] and [pool rows, out], one per part of the fused linear layer.
    tables = (pages [slots, parts, n], ranks [slots, parts], scales [slots, parts], offsets [parts]); rank 0 means
    that the slot's adapter does not target the part. A page has `page_rows` rank rows (adapters are paged as in Sheng
    et al., "S-LoRA", 2023).
    """
    a_pools, b_pools = pools
    pages, ranks, scales, offsets = tables
    for i in prange(rows.shape[0]):
        if rows[i] < 0:
            continue
        slot = slots[i]
        source = x[rows[i]]
        hidden = np.empty(page_rows, np.float32)
        for part in range(len(a_pools)):
            a, b = a_pools[part], b_pools[part]
            scale = scales[slot, part]
            target = y[rows[i], offsets[part] : offsets[part] + b.shape[1]]
            for page in range((ranks[slot, part] + page_rows - 1) // page_rows):
                base = pages[slot, part, page] * page_rows
                count = min(page_rows, ranks[slot, part] - page * page_rows)
                for k in range(count):
                    weights = a[base + k]
                    dot = np.float32(0)
                    for j in range(source.shape[0]):
                        dot += source[j] * weights[j]
                    hidden[k] = dot * scale
                # Four rank rows at once: the target row is read and written a quarter as often.
                k = 0
                while k + 4 <= count:
                    h0, h1, h2, h3 = hidden[k], hidden[k + 1], hidden[k + 2], hidden[k + 3]
                    b0, b1, b2, b3 = b[base + k], b[base + k + 1], b[base + k + 2], b[base + k + 3]
                    for j in range(target.shape[0]):
                        target[j] += h0 * b0[j] + h1 * b1[j] + h2 * b2[j] + h3 * b3[j]
                    k += 4
                while k < count:
                    h0, b0 = hidden[k], b[base + k]
                    for j in range(target.shape[0]):
                        target[j] += h0 * b0[j]
                    k += 1
