"""Every CPU kernel against a plain reference, and row by row: a row has the same bits alone and among others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from motet.engine.kernels import cpu
from motet.engine.kernels.matmul import Weight
from motet.engine.layers.elementwise import RMSNorm, silu_mul

Array = NDArray[np.float32]
ROWS = (1, 7, 300)
EPS = 1e-5


def random(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@dataclass(frozen=True)
class RowKernel:
    """A kernel as a function of rows x[T, n], with its reference; `width` of x for a size."""

    run: Callable[[Array], Array]
    reference: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def rms(x: NDArray[np.float64], weight: Array) -> NDArray[np.float64]:
    """The norm by its definition."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * weight


def norm_kernel(size: int) -> RowKernel:
    """rms_norm of rows of this size."""
    weight = random(size, seed=1)

    def run(x: Array) -> Array:
        out = np.empty_like(x)
        cpu.rms_norm(x, weight, EPS, out)
        return out

    return RowKernel(run, lambda x: rms(x, weight))


def add_norm_kernel(size: int) -> RowKernel:
    """add_rms_norm; a row holds x and the residual side by side, and so does the result (sum and norm)."""
    weight = random(size, seed=1)

    def run(x: Array) -> Array:
        residual, out = np.ascontiguousarray(x[:, size:]), np.empty((len(x), size), np.float32)
        cpu.add_rms_norm(np.ascontiguousarray(x[:, :size]), residual, weight, EPS, out)
        return np.concatenate([residual, out], axis=1)

    def reference(x: NDArray[np.float64]) -> NDArray[np.float64]:
        total = x[:, :size] + x[:, size:]
        return np.concatenate([total, rms(total, weight)], axis=1)

    return RowKernel(run, reference)


def head_norm_kernel(size: int) -> RowKernel:
    """head_norm on three heads that start after one other column, with columns after them too."""
    weight = random(size, seed=1)
    heads, first = 3, 1

    def run(x: Array) -> Array:
        out = x.copy()
        cpu.head_norm(out, first, heads, weight, EPS)
        return out

    def reference(x: NDArray[np.float64]) -> NDArray[np.float64]:
        out = x.copy()
        for h in range(heads):
            columns = slice(first + h * size, first + (h + 1) * size)
            out[:, columns] = rms(x[:, columns], weight)
        return out

    return RowKernel(run, reference)


def silu_kernel(size: int) -> RowKernel:
    """silu_mul of gate and up."""

    def run(x: Array) -> Array:
        out = np.empty((len(x), size), np.float32)
        cpu.silu_mul(x, out)
        return out

    return RowKernel(run, lambda x: x[:, :size] / (1 + np.exp(-x[:, :size])) * x[:, size:])


def weight_kernel(size: int) -> RowKernel:
    """A packed matrix product onto 37 outputs."""
    dense = random(37, size, seed=2)
    weight = Weight(torch.from_numpy(dense.copy()))
    return RowKernel(lambda x: weight(torch.from_numpy(x)).numpy(), lambda x: x @ dense.T.astype(np.float64))


KERNELS = {
    "rms_norm": (norm_kernel, lambda n: n),
    "add_rms_norm": (add_norm_kernel, lambda n: 2 * n),
    "head_norm": (head_norm_kernel, lambda n: 3 * n + 6),
    "silu_mul": (silu_kernel, lambda n: 2 * n),
    "weight": (weight_kernel, lambda n: n),
}


@pytest.mark.parametrize("size", [1, 5, 33, 64, 577])
@pytest.mark.parametrize("name", KERNELS)
def test_row_kernels(name: str, size: int) -> None:
    make, width = KERNELS[name]
    kernel = make(size)
    x = random(max(ROWS), width(size))
    whole = kernel.run(x.copy())
    np.testing.assert_allclose(whole, kernel.reference(x.astype(np.float64)), rtol=2e-5, atol=1e-5 + 5e-6 * size**0.5)
    for rows in ROWS:
        np.testing.assert_array_equal(kernel.run(x[:rows].copy()), whole[:rows])
    for row in (0, 1, 150, 299):
        np.testing.assert_array_equal(kernel.run(x[row : row + 1].copy())[0], whole[row])
    shuffled = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_array_equal(kernel.run(x[shuffled].copy()), whole[shuffled])


@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (576, 1536), (1536, 576), (48, 5000), (3, 1)])
def test_products_at_model_sizes_do_not_see_their_neighbours(inputs: int, outputs: int) -> None:
    weight = Weight(torch.from_numpy(random(outputs, inputs)))
    x = torch.from_numpy(random(130, inputs, seed=3))
    whole = weight(x)
    assert weight.shape == (outputs, inputs)
    for start, stop in ((0, 1), (0, 2), (3, 11), (1, 65), (64, 130), (129, 130)):
        assert torch.equal(weight(x[start:stop].clone()), whole[start:stop])
        assert torch.equal(weight(x[start:stop]), whole[start:stop]), "a view into a larger tensor"
    assert weight(x[:0]).shape == (0, outputs)


@pytest.mark.parametrize("half", [1, 4, 13, 32])
def test_rotation(half: int) -> None:
    """As transformers' rotate_half, at any positions in any order; the values behind the heads stay as they are."""
    heads, rest, rows = 5, 3, 300
    angles = np.random.default_rng(0).uniform(0, 6, (512, half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    positions = np.random.default_rng(1).integers(0, 512, rows)
    x = random(rows, heads * 2 * half + rest)
    out = x.copy()
    cpu.rotate(out, heads, positions, cos, sin)
    np.testing.assert_array_equal(out[:, heads * 2 * half :], x[:, heads * 2 * half :])
    part = x[:, : heads * 2 * half].reshape(rows, heads, 2, half)
    c, s = cos[positions][:, None], sin[positions][:, None]
    expected = np.stack([part[:, :, 0] * c - part[:, :, 1] * s, part[:, :, 1] * c + part[:, :, 0] * s], axis=2)
    np.testing.assert_allclose(out[:, : heads * 2 * half], expected.reshape(rows, -1), atol=1e-6)
    for row in (0, 17, 299):
        alone = x[row : row + 1].copy()
        cpu.rotate(alone, heads, positions[row : row + 1], cos, sin)
        np.testing.assert_array_equal(alone[0], out[row])


def test_store_kv_writes_its_rows_and_no_other() -> None:
    heads, kv_heads, block_size, size, blocks = 4, 2, 5, 7, 9
    keys = random(blocks, kv_heads, block_size, size, seed=1)
    values = random(blocks, kv_heads, block_size, size, seed=2)
    before = keys.copy(), values.copy()
    rows = np.random.default_rng(3).permutation(blocks * block_size)[:30]
    qkv = random(30, (heads + 2 * kv_heads) * size, seed=4)
    cpu.store_kv(qkv, heads, rows, keys, values)
    parts = qkv.reshape(30, heads + 2 * kv_heads, size)
    for cache, old, first in ((keys, before[0], heads), (values, before[1], heads + kv_heads)):
        expected = old.copy()
        for t, row in enumerate(rows):
            expected[row // block_size, :, row % block_size] = parts[t, first : first + kv_heads]
        np.testing.assert_array_equal(cache, expected)


@dataclass(frozen=True)
class Paged:
    """A random paged cache and decode queries over it."""

    qkv: Array
    keys: Array
    values: Array
    block_tables: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    out_width: int

    def run(self, window: int, only: int | None = None) -> Array:
        """The kernel over all sequences, or over one alone."""
        pick = slice(None) if only is None else slice(only, only + 1)
        arrays = (self.qkv, self.block_tables, self.seq_lens)
        qkv, block_tables, seq_lens = (np.ascontiguousarray(array[pick]) for array in arrays)
        out = np.empty((len(qkv), self.out_width), np.float32)
        cpu.decode_attention(qkv, self.keys, self.values, block_tables, seq_lens, window, out)
        return out


def paged(heads: int, kv_heads: int, size: int) -> Paged:
    """300 sequences of 1 to 90 tokens, whose blocks lie anywhere and may be shared."""
    rng = np.random.default_rng(size)
    block_size, blocks = 4, 64
    lengths = rng.integers(1, 91, 300).astype(np.int32)
    tables = rng.integers(0, blocks, (300, 23)).astype(np.int32)
    cache = (blocks, kv_heads, block_size, size)
    return Paged(
        random(300, (heads + 2 * kv_heads) * size),
        random(*cache),
        random(*cache, seed=1),
        tables,
        lengths,
        heads * size,
    )


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(1, 1, 1), (4, 4, 5), (6, 2, 16), (9, 3, 64)])
@pytest.mark.parametrize("window", [0, 1, 13])
def test_decode_attention(heads: int, kv_heads: int, size: int, window: int) -> None:
    case = paged(heads, kv_heads, size)
    out = case.run(window)
    for s in range(0, 300, 23):
        first = max(0, case.seq_lens[s] - window) if window else 0
        places = [(case.block_tables[s, p // 4], p % 4) for p in range(first, case.seq_lens[s])]
        for h in range(heads):
            keys = np.array([case.keys[b, h * kv_heads // heads, o] for b, o in places], np.float64)
            values = np.array([case.values[b, h * kv_heads // heads, o] for b, o in places], np.float64)
            scores = keys @ case.qkv[s, h * size : (h + 1) * size] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            expected = weights @ values / weights.sum()
            np.testing.assert_allclose(out[s, h * size : (h + 1) * size], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(case.run(window, only=s)[0], out[s])


def test_layers_use_the_kernels() -> None:
    """The wrappers hand over the right arrays: `add` also changes the residual."""
    x, residual = torch.from_numpy(random(5, 9)), torch.from_numpy(random(5, 9, seed=1))
    norm = RMSNorm(9, EPS)
    norm.weight = torch.from_numpy(random(9, seed=2))
    total = x + residual
    expected = torch.nn.functional.rms_norm(total, (9,), norm.weight, EPS)
    torch.testing.assert_close(norm(total.clone()), expected)
    torch.testing.assert_close(norm.add(x, residual), expected)
    torch.testing.assert_close(residual, total)
    gate_up = torch.from_numpy(random(5, 14))
    torch.testing.assert_close(silu_mul(gate_up), torch.nn.functional.silu(gate_up[:, :7]) * gate_up[:, 7:])


def test_extreme_values_stay_finite() -> None:
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, 1.0, 1.0, 1.0]])
    assert silu_mul(gate_up).tolist() == [[pytest.approx(0.0, abs=1e-30), 200.0, 0.0]]
    keys = np.full((1, 1, 4, 2), 300.0, np.float32)
    keys[0, 0, 1] = -300.0
    values = np.arange(8, dtype=np.float32).reshape(1, 1, 4, 2)
    out = np.empty((1, 2), np.float32)
    qkv = np.full((1, 6), 300.0, np.float32)
    table, lengths = np.zeros((1, 1), np.int32), np.array([2], np.int32)
    cpu.decode_attention(qkv, keys, values, table, lengths, 0, out)
    np.testing.assert_array_equal(out, [[0.0, 1.0]])
