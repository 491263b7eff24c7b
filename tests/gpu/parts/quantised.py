"""Products with quantised weights against float64 at the shapes of an 8B, and their times beside plain products."""

from __future__ import annotations

from functools import partial

import torch
from gpu.measuring import Bench, Table, microseconds, percent, relative_error, require
from gpu.parts.lora import linears
from torch import Tensor

from motet.engine.kernels.quantized_weight import (
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Quantization,
    StoredWeight,
    fp8_rows,
    linear_weight,
    weight_bytes,
)

FORMS: tuple[Quantization, ...] = ("fp8", "int8", "int4")

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
"""The largest error as a share of the largest result; the product of fp8 adds up with fewer bits than fp32's."""


def run(bench: Bench) -> None:
    """Print the table. Raises AssertionError if a result is wrong, after all were computed."""
    torch.manual_seed(9)
    bandwidth = bench.bandwidth()
    roofline = f"of reading the weight ({bandwidth / 1e9:.0f} GB/s)"
    table = Table("linear", "form", "rows", "largest error", "µs", "µs without", roofline)
    worst = 0.0
    for name, shapes in linears(bench.tiny).items():
        outputs, inputs = sum(shape.outputs for shape in shapes), shapes[0].inputs
        dense = bench.random(outputs, inputs, scale=inputs**-0.5)
        plain = linear_weight(StoredWeight(dense, dense.dtype), "none")
        for form in FORMS:
            weight = linear_weight(StoredWeight(dense, dense.dtype), form)
            size = weight_bytes(form, outputs, inputs, dense.itemsize)
            for rows in (1, 7) if bench.tiny else (1, 32, 128, 2048):
                x = bench.random(rows, inputs)
                error = relative_error(weight(x), expected(weight, x))
                seconds, before = (bench.seconds(partial(product, x)) for product in (weight, plain))
                share = percent(size / seconds / bandwidth)
                table.row(name, form, rows, error, microseconds(seconds), microseconds(before), share)
                worst = max(worst, error)
    require(worst < TOLERANCE[bench.dtype], f"the largest error is {worst}")


def expected(weight: object, x: Tensor) -> Tensor:
    """The product in float64."""
    assert isinstance(weight, (Fp8Weight, Int8Weight, Int4Weight))
    exact = x.double()
    if isinstance(weight, Fp8Weight):
        values, scales = fp8_rows(x)
        exact = values.double() * scales.double()
    return exact @ weight.dequantized(torch.float64).T
