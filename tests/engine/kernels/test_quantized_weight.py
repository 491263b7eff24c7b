"""Quantised weights: how exact they are, their products, their sizes, and what CUDA's product accepts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from motet.engine.kernels.quantized_weight import (
    FP8,
    GROUP,
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Quantization,
    StoredWeight,
    fp8_rows,
    linear_weight,
    scaled_product,
    weight_bytes,
)

KINDS: tuple[Quantization, ...] = ("fp8", "int8", "int4")
LLAMA_8B = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
TOKENS = (1, 2, 3, 8, 16, 17, 100, 128, 512, 2048)


def quantized(dense: Tensor, kind: Quantization) -> Fp8Weight | Int8Weight | Int4Weight:
    """The weight in that form."""
    weight = linear_weight(StoredWeight(dense, dense.dtype), kind)
    assert isinstance(weight, (Fp8Weight, Int8Weight, Int4Weight))
    return weight


@pytest.mark.parametrize(("kind", "largest"), [("fp8", 2**-4), ("int8", 0.5 / 127), ("int4", 0.6 / 15)])
def test_every_value_is_near(kind: Quantization, largest: float) -> None:
    """float8 is near relative to the value; int8 relative to the row's largest, int4 to the group's range."""
    torch.manual_seed(1)
    dense = torch.randn(48, 320) * torch.rand(48, 1).exp()
    error = (quantized(dense, kind).dequantized(torch.float32) - dense).abs()
    groups = dense.unflatten(1, (-1, GROUP))
    span = (groups.amax(2) - groups.amin(2)).repeat_interleave(GROUP, 1)
    scale = {"fp8": dense.abs() + 1e-3, "int8": dense.abs().amax(1, keepdim=True), "int4": span}[kind]
    assert (error / scale).max() <= largest * 1.001
    assert error.max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [16, 64, 192, 576])
def test_products_are_those_of_the_dequantised_weight(kind: Quantization, inputs: int) -> None:
    torch.manual_seed(inputs)
    weight, x = quantized(torch.randn(32, inputs), kind), torch.randn(7, inputs)
    exact = x.double()
    if kind == "fp8":
        values, scales = fp8_rows(x)
        exact = values.double() * scales.double()
        assert ((exact - x).abs() <= x.abs() * 2**-4 + 1e-3).all()
    expected = exact @ weight.dequantized(torch.float64).T
    torch.testing.assert_close(weight(x).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_constant_rows(kind: Quantization, dtype: torch.dtype) -> None:
    """A row of zeros has no range to divide by; equal values are a range with zero in it."""
    dense = torch.stack([torch.zeros(64), torch.full((64,), 0.75), torch.full((64,), -3.0)]).to(dtype)
    weight = quantized(dense, kind).dequantized(dtype)
    torch.testing.assert_close(weight, dense, rtol=0.05, atol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("fp8", FP8), ("int8", torch.int8)])
def test_a_stored_form_is_kept_bit_for_bit(kind: Quantization, dtype: torch.dtype) -> None:
    """Parts with scales of their own are put together; a part in 16 bits makes all of them dense."""
    torch.manual_seed(3)
    scales = [torch.rand(16, 1) + 0.1, torch.full((8, 1), 0.5)]
    values = [(torch.randn(len(s), 32) * 3).clamp(-100, 100).to(dtype) for s in scales]
    parts = [StoredWeight(v, torch.float32, s) for v, s in zip(values, scales, strict=True)]
    expected = torch.cat([v.float() * s for v, s in zip(values, scales, strict=True)])
    weight = linear_weight(StoredWeight.concatenated(parts), kind)
    assert isinstance(weight, (Fp8Weight, Int8Weight))
    assert torch.equal(weight.dequantized(torch.float32), expected)
    x = torch.randn(3, 32)
    dense = linear_weight(StoredWeight.concatenated(parts), "none")
    torch.testing.assert_close(dense(x), x @ expected.T)
    mixed = StoredWeight.concatenated([*parts, StoredWeight(torch.ones(4, 32), torch.float32)])
    assert mixed.scales is None
    assert torch.equal(mixed.values, torch.cat([expected, torch.ones(4, 32)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 128), (48, 192)])
def test_the_planned_size_is_the_real_one(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    for kind in KINDS:
        tensors = [
            t for t in vars(quantized(torch.randn(outputs, inputs).to(dtype), kind)).values() if isinstance(t, Tensor)
        ]
        assert sum(t.nbytes for t in tensors) == weight_bytes(kind, outputs, inputs, dtype.itemsize)
    assert weight_bytes("none", outputs, inputs, dtype.itemsize) == outputs * inputs * dtype.itemsize


def meta_product(tokens: int, outputs: int, inputs: int, weight: Tensor | None = None) -> Tensor:
    """The product's result on meta tensors, for which PyTorch makes CUDA's checks."""
    meta = torch.device("meta")
    x, x_scales = torch.empty(tokens, inputs, dtype=FP8, device=meta), torch.empty(tokens, 1, device=meta)
    weight = torch.empty(outputs, inputs, dtype=FP8, device=meta) if weight is None else weight
    return scaled_product(x, x_scales, weight, torch.empty(outputs, 1, device=meta), torch.bfloat16)


@pytest.mark.parametrize("linear", LLAMA_8B)
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_cuda_accepts_the_fp8_product_of_llama_8b(linear: str, shards: int) -> None:
    outputs, inputs = LLAMA_8B[linear]
    outputs, inputs = (outputs, inputs // shards) if linear in ("o", "down") else (outputs // shards, inputs)
    for tokens in TOKENS:
        y = meta_product(tokens, outputs, inputs)
        assert (y.shape, y.dtype) == ((tokens, outputs), torch.bfloat16)


def test_cuda_refuses_other_layouts_and_sizes() -> None:
    """What the test above relies on: the checks on meta tensors are CUDA's."""
    with pytest.raises(RuntimeError, match="col_major"):
        meta_product(4, 32, 64, torch.empty(64, 32, dtype=FP8, device="meta").t())
    with pytest.raises(RuntimeError, match="divisible by 16"):
        meta_product(4, 24, 64)


@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_torchs_own_fp8_product_is_the_cpus(tokens: int) -> None:
    torch.manual_seed(tokens)
    x, weight = torch.randn(tokens, 64), Fp8Weight.quantized(torch.randn(32, 64))
    values, scales = fp8_rows(torch.randn(32, 64))
    product = scaled_product(*fp8_rows(x), values, scales, torch.float32)
    torch.testing.assert_close(product, Fp8Weight(values, scales)(x), rtol=1e-5, atol=1e-5)
    assert weight.shape == (32, 64)
