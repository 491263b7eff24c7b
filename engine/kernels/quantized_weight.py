"""Linear layers' weights in 8 and 4 bits, and their products with activations in the engine's dtype.

`fp8` is float8_e4m3 with one scale per output; the activations are rounded to float8 as well, with one scale per token.
`int8` has one scale per output. `int4` has a scale and a zero point for each GROUP inputs of an output. With both,
activations are not rounded. On CUDA the products are `torch._scaled_mm` and the Triton kernels of
quantized_triton.py, which read the weights in their stored form; on the CPU the weight is dequantised for each product,
which saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from motet.engine.kernels.matmul import Weight

Quantization = Literal["none", "fp8", "int8", "int4"]

GROUP = 64
"""Inputs that share a scale and a zero point in `int4`."""

FP8 = torch.float8_e4m3fn
FP8_MULTIPLE = 16
"""`torch._scaled_mm` takes inputs and outputs in multiples of this."""

_FP8_MAX = 448.0
_LEAST_SCALE = 1e-12


class MatrixProduct(Protocol):
    """A weight [out, in]."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] @ weight.T, [T, out], in x's dtype."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a checkpoint has it, for an engine that computes in `dtype`.

    Without `scales`, `values` [out, in] are in `dtype`; else in float8_e4m3 or int8, with fp32 `scales` [out, 1].
    """

    values: Tensor
    dtype: torch.dtype
    scales: Tensor | None = None

    def dense(self) -> Tensor:
        """The weight [out, in] in the engine's dtype."""
        return self.values if self.scales is None else (self.values.float() * self.scales).to(self.dtype)

    @classmethod
    def concatenated(cls, parts: Sequence[StoredWeight]) -> StoredWeight:
        """The parts below each other; in the engine's dtype unless all are quantised in the same way."""
        first = parts[0]
        if len(parts) == 1:
            return first
        scales = [part.scales for part in parts if part.scales is not None]
        if len(scales) < len(parts) or any(part.values.dtype != first.values.dtype for part in parts):
            return cls(torch.cat([part.dense() for part in parts]), first.dtype)
        values = torch.cat([part.values.view(torch.int8) for part in parts])  # torch.cat has no float8
        return cls(values.view(first.values.dtype), first.dtype, torch.cat(scales))


class _ScaledWeight:
    """Values [out, in] of 8 bits with fp32 scales [out, 1]."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self.shape = tuple(values.shape)
        self._values, self._scales = values.contiguous(), scales.contiguous()

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in `dtype`."""
        return (self._values.float() * self._scales).to(dtype)


class Fp8Weight(_ScaledWeight):
    """The values are float8_e4m3; in and out are multiples of FP8_MULTIPLE."""

    @classmethod
    def quantized(cls, dense: Tensor) -> Fp8Weight:
        """The weight with the nearest values to `dense` [out, in]."""
        return cls(*fp8_rows(dense))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] @ weight.T, [T, out], in x's dtype, with x rounded to float8."""
        if x.device.type == "cpu":
            values, scales = fp8_rows(x)
            return F.linear(values.to(x.dtype) * scales.to(x.dtype), self.dequantized(x.dtype))
        from motet.engine.kernels.quantized_triton import fp8_rows as fp8_rows_triton

        values, scales = fp8_rows_triton(x)
        return scaled_product(values, scales, self._values, self._scales, x.dtype)


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of x [rows, n] as float8_e4m3 [rows, n] with an fp32 scale [rows, 1]."""
    scales = (x.abs().amax(1, keepdim=True).float() / _FP8_MAX).clamp(min=_LEAST_SCALE)
    return (x.float() / scales).clamp(-_FP8_MAX, _FP8_MAX).to(FP8), scales


def scaled_product(x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(x_scales * x) [T, in] @ (scales * weight).T [in, out], [T, out], for float8 and fp32 scales [T, 1], [out, 1]."""
    # cuBLAS reads the second factor by columns, which are the weight's rows.
    y: Tensor = torch._scaled_mm(x, weight.t(), x_scales, scales.t(), out_dtype=dtype, use_fast_accum=True)
    return y


class Int8Weight(_ScaledWeight):
    """The values are int8."""

    @classmethod
    def quantized(cls, dense: Tensor) -> Int8Weight:
        """The weight with the nearest values to `dense` [out, in]."""
        scales = (dense.abs().amax(1, keepdim=True).float() / 127).clamp(min=_LEAST_SCALE)
        return cls((dense.float() / scales).round().to(torch.int8), scales)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] @ weight.T, [T, out], in x's dtype."""
        if x.device.type == "cpu":
            return F.linear(x, self.dequantized(x.dtype))
        from motet.engine.kernels.quantized_triton import int8_product

        return int8_product(x, self._values, self._scales)


class Int4Weight:
    """Values of 0 to 15 for [out, in], with a scale (in the engine's dtype) and a zero point for each group.

    The inputs are filled up with zeros to pairs of groups. A byte has an input of a pair's first group in its low four
    bits, and the same input of the second group in its high ones.
    """

    def __init__(self, packed: Tensor, scales: Tensor, zeros: Tensor, inputs: int) -> None:
        """packed [out, pairs * GROUP] uint8, scales and zeros [out, 2 * pairs], zeros int8."""
        self.shape = (len(packed), inputs)
        self._packed, self._scales, self._zeros = packed, scales, zeros

    @classmethod
    def quantized(cls, dense: Tensor) -> Int4Weight:
        """The weight nearest to `dense` [out, in]."""
        outputs, inputs = dense.shape
        groups = F.pad(dense, (0, -inputs % (2 * GROUP))).float().unflatten(1, (-1, GROUP))
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        # Rounded to its dtype before it is used, so that the values make up for the rounding.
        scales = ((high - low) / 15).to(dense.dtype).clamp(min=torch.finfo(dense.dtype).tiny)
        zeros = (-low / scales.float()).round().clamp(0, 15)
        values = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15).to(torch.uint8)
        packed = values[:, ::2] | values[:, 1::2] << 4
        return cls(packed.reshape(outputs, -1), scales, zeros.to(torch.int8), inputs)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in `dtype`."""
        pairs = self._packed.unflatten(1, (-1, 1, GROUP))
        groups = torch.cat([pairs & 15, pairs >> 4], 2).flatten(1, 2)
        values = (groups.float() - self._zeros.float()[..., None]) * self._scales.float()[..., None]
        return values.flatten(1)[:, : self.shape[1]].to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] @ weight.T, [T, out], in x's dtype."""
        if x.device.type == "cpu":
            return F.linear(x, self.dequantized(x.dtype))
        from motet.engine.kernels.quantized_triton import int4_product

        return int4_product(x, self._packed, self._scales, self._zeros)


def linear_weight(stored: StoredWeight, quantization: Quantization) -> MatrixProduct:
    """The weight of a linear layer in the form `quantization`. A weight that is stored in that form stays as it is."""
    if stored.scales is not None and (quantization, stored.values.dtype) == ("fp8", FP8):
        return Fp8Weight(stored.values, stored.scales)
    if stored.scales is not None and (quantization, stored.values.dtype) == ("int8", torch.int8):
        return Int8Weight(stored.values, stored.scales)
    if quantization == "none":
        return Weight(stored.dense())
    if quantization == "fp8":
        return Fp8Weight.quantized(stored.dense())
    return Int8Weight.quantized(stored.dense()) if quantization == "int8" else Int4Weight.quantized(stored.dense())


def weight_bytes(quantization: Quantization, outputs: int, inputs: int, item_bytes: int) -> int:
    """Bytes of a linear layer's weight with its scales; `item_bytes` is the size of the engine's dtype."""
    if quantization == "none":
        return outputs * inputs * item_bytes
    if quantization == "int4":
        pairs = -(-inputs // (2 * GROUP))
        return outputs * pairs * (GROUP + 2 * (item_bytes + 1))
    return outputs * (inputs + 4)
