"""The CUDA sampling kernels without a GPU: interpreted against the CPU's, and compiled for three generations.

Each runs in a process of its own: Triton decides at import whether it interprets, and cannot compile once it does.
"""

from __future__ import annotations

import pytest
from support.triton_process import run_triton

DRAW = """
import sys
import numpy as np
import torch
from motet.engine.kernels import cpu_sampling, sampling_triton

sampling_triton.BLOCK = 64
rng = np.random.default_rng(int(sys.argv[1]))
for case in range(int(sys.argv[2])):
    size, count = int(rng.choice([5, 64, 100, 193])), 6
    # Powers of two make every sum exact, so that no rounding decides; spread 0 makes all probabilities equal.
    exponents = rng.normal(0, rng.choice([0.0, 0.01, 1.0, 6.0]), (count, size)).round().clip(-20, 20)
    weights = np.exp2(exponents).astype(np.float32)
    if case % 3 == 0:
        weights *= rng.random(weights.shape) < 0.5
        weights[:, size // 2] = 1.0
    weights /= np.float32(2.0) ** np.ceil(np.log2(weights.sum(-1).max()))
    top_k = rng.choice([0, 1, 3, 40, 1000], count).astype(np.int32)
    # Shares that are not sums of powers of two.
    cuts = np.stack([rng.choice([1.0, 0.9991, 0.9137, 0.3071, 0.0], count), rng.choice([0, 0, 0.01, 0.5, 1], count),
                     rng.choice([1.0, 1.0, 0.8713, 0.2137], count)], 1)
    draws = rng.choice([0.0, rng.random(), rng.random(), 1 - 2**-53, -1.0], count)
    expected = np.full(count, -5, np.int32)
    cpu_sampling.draw_rows(weights.copy(), top_k, cuts, draws, expected)
    tensors = [torch.from_numpy(a) for a in (weights, top_k, cuts, draws)]
    chosen = torch.full((count,), -5, dtype=torch.int32)
    has_typical = bool((cuts[:, 2] < 1).any())
    scratch = torch.full((count, size), torch.nan) if has_typical else None
    sampling_triton.draw_rows(tensors[0].clone(), scratch, *tensors[1:], chosen)
    assert chosen.tolist() == expected.tolist(), (case, size, top_k, cuts, draws, chosen, expected)
    assert (expected == -5).tolist() == (draws < 0).tolist()
broken = torch.full((2, 100), 0.01)
broken[0] = torch.nan
cuts = torch.tensor([[0.9, 0.1, 0.5], [1.0, 0.0, 1.0]], dtype=torch.float64)
ids = torch.full((2,), -5, dtype=torch.int32)
draws = torch.full((2,), 0.505, dtype=torch.float64)
sampling_triton.draw_rows(broken, torch.empty(2, 100), torch.tensor([3, 0], dtype=torch.int32), cuts, draws, ids)
assert 0 <= ids[0] < 100 and ids[1] == 50, ids
"""

TABLE = """
import sys
import numpy as np
import torch
from motet.engine.kernels import cpu_sampling, sampling_triton

sampling_triton.TABLE_BLOCK = 16
rng = np.random.default_rng(int(sys.argv[1]))
size, width, places = 90, 64, 5
table = [np.zeros((places, width), np.int32), np.zeros((places, width), np.float32),
         np.full((places, width), 7, np.float32), np.array([0, 3, 16, 30, 63], np.int32)]
for place, entries in enumerate(table[3]):
    table[0][place, :entries] = rng.permutation(size)[:entries]
    table[1][place, :entries] = rng.integers(-1, 4, entries)
    table[2][place, :entries] = rng.normal(0, 2, entries) * (rng.random(entries) < 0.5)
mirror = [torch.from_numpy(a.copy()) for a in table]
rows, used = np.array([6, 0, 3], np.int32), np.array([4, 0, 2], np.int32)
penalties = np.array([[1.3, 0.5, -0.25], [0.7, -2.0, 2.0], [1.0, 0.0, 0.0]], np.float32)
for step in range(int(sys.argv[2])):
    logits = rng.normal(0, 3, (7, size)).astype(np.float32)
    other = torch.from_numpy(logits.copy())
    cpu_sampling.adjust_rows(logits, rows, used, penalties, *table)
    index = [torch.from_numpy(a) for a in (rows, used)]
    sampling_triton.adjust_rows(other, *index, torch.from_numpy(penalties), tuple(mirror))
    assert np.array_equal(logits, other.numpy()), step
    # Few different ids, so that the full row of the table stays at its width.
    sampled = rng.integers(0, 12, 7).astype(np.int32)
    sampled[6] = table[0][4, step % 64]
    cpu_sampling.count_rows(sampled, rows, used, *table)
    sampling_triton.count_rows(torch.from_numpy(sampled), *index, tuple(mirror))
    for a, b in zip(table, mirror):
        assert np.array_equal(a, b.numpy()), step
"""

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from motet.engine.kernels import sampling_triton as kernels

pointers = dict.fromkeys(["probabilities", "distances", "logits", "penalties", "counts", "biases"], "*fp32")
pointers |= dict.fromkeys(["top_k", "out", "rows", "places", "ids", "sizes", "sampled"], "*i32")
types = pointers | {"cuts": "*fp64", "draws": "*fp64"} | dict.fromkeys(["size", "vocab_size", "width"], "i32")
table = {"BLOCK": kernels.TABLE_BLOCK}
draw = {"BLOCK": kernels.BLOCK}
forms = {"adjust": (kernels.adjust, table, 4), "count": (kernels.count, table, 4)}
for name, has_typical in (("draw", False), ("typical", True)):
    forms[name] = kernels.draw, draw | {"HAS_TYPICAL": has_typical}, kernels.WARPS
for capability in map(int, sys.argv[1].split(",")):
    for kernel, constants, warps in map(forms.get, sys.argv[2].split(",")):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options={"num_warps": warps})
        assert built.asm["cubin"], (kernel, capability)
"""


@pytest.mark.parametrize(
    ("code", "interpret", "arguments"),
    [
        pytest.param(DRAW, True, ("1", "3"), id="the draw, interpreted"),
        pytest.param(DRAW, True, ("2", "10"), id="many draws, interpreted", marks=pytest.mark.slow),
        pytest.param(TABLE, True, ("1", "8"), id="penalties, interpreted"),
        pytest.param(COMPILE, False, ("90", "adjust,count,draw"), id="compiled", marks=pytest.mark.slow),
        pytest.param(
            COMPILE, False, ("80,90,100", "adjust,count,draw,typical"), id="all compiled", marks=pytest.mark.slow
        ),
    ],
)
def test_triton(code: str, interpret: bool, arguments: tuple[str, ...]) -> None:
    run_triton(["-c", code, *arguments], interpret, seconds=300)
