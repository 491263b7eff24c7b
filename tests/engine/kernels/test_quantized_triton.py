"""The CUDA products with quantised weights, without a GPU: interpreted against the CPU's, and compiled.

Each runs in a process of its own: Triton decides at import whether it interprets, and cannot compile once it does.
"""

from __future__ import annotations

import pytest
from support.triton_process import run_triton

INTERPRET = """
import torch
from motet.engine.kernels import quantized_triton as kernels
from motet.engine.kernels.quantized_weight import GROUP, Int4Weight, Int8Weight, fp8_rows

assert kernels.GROUP == GROUP
torch.manual_seed(5)
# float16 stands for 16 bits: the interpreter multiplies the bits of bfloat16 as integers.
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2**-10)):
    for tokens, outputs, inputs in ((1, 40, 200), (17, 33, 128), (40, 72, 576), (70, 130, 96)):
        # A row stride that is not the number of inputs, as for the parts of a fused layer.
        x = torch.randn(tokens, inputs + 8).to(dtype)[:, :inputs]
        dense = torch.randn(outputs, inputs).to(dtype)
        eight, four = Int8Weight.quantized(dense), Int4Weight.quantized(dense)
        products = {
            "int8": (eight, kernels.int8_product(x, eight._values, eight._scales)),
            "int4": (four, kernels.int4_product(x, four._packed, four._scales, four._zeros)),
        }
        for name, (weight, y) in products.items():
            exact = x.double() @ weight.dequantized(torch.float64).T
            assert y.dtype == dtype and y.shape == exact.shape
            error = ((y.double() - exact).abs() / (exact.abs() + inputs**0.5)).max()
            assert error < tolerance, (name, tokens, outputs, inputs, dtype, error)
    for shape in ((1, 16), (3, 1500)):
        x = torch.randn(shape).to(dtype) * 30
        x[-1] = 0
        # Into fp32, since the interpreter's own conversion to float8 is wrong where rounding carries into the exponent.
        scaled, scales = torch.empty(shape), torch.empty(shape[0], 1)
        kernels.quantize_row[(shape[0],)](x, scaled, scales, shape[1], x.stride(0), kernels.ROW_BLOCK)
        values, expected_scales = fp8_rows(x)
        torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
        assert (scaled.to(values.dtype).float() == values.float()).float().mean() > 0.999
        torch.testing.assert_close(scaled * scales, x.float())
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from motet.engine.kernels import quantized_triton as kernels

def built(kernel, types, constants, options, capability):
    sizes = ("inputs", "outputs", "x_stride", "columns")
    types = dict.fromkeys((*sizes, "tokens", "pairs"), "i32") | types
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    # Addresses and sizes are multiples of 16 in every served model.
    names = [name for name in kernel.arg_names if name in sizes or types.get(name, "").startswith("*")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert done.asm["cubin"]
    return done

for capability in (80, 90, 100):
    for tokens in (1, 32, 64, 2048):
        block_out, block_tokens, options = kernels.tile_shape(tokens)
        blocks = {"BLOCK_OUT": block_out, "BLOCK_TOKENS": block_tokens}
        common = {"x": "*bf16", "y": "*bf16"}
        eight = built(kernels.int8_tile, common | {"weight": "*i8", "scales": "*fp32"},
                      blocks | {"BLOCK_IN": kernels.block_in(tokens)}, options, capability)
        four = built(kernels.int4_tile, common | {"packed": "*u8", "scales": "*bf16", "zeros": "*i8"},
                     blocks | {"SIZE": kernels.GROUP}, options, capability)
        for done in (eight, four):
            assert "mma" in done.asm["ptx"], "tensor cores compute it"
            assert done.metadata.shared <= (99 if capability == 80 else 227) << 10, "8.9 runs the code of 8.0"
for capability in (89, 90, 100):
    row = built(kernels.quantize_row, {"x": "*bf16", "values": "*fp8e4nv", "scales": "*fp32"},
                {"BLOCK": kernels.ROW_BLOCK}, {}, capability)
    assert "cvt.rn.satfinite.e4m3x2" in row.asm["ptx"], "rounded to the nearest"
"""


@pytest.mark.parametrize("case", ["interpret", pytest.param("compile", marks=pytest.mark.slow)])
def test_kernels(case: str) -> None:
    run_triton(["-c", {"interpret": INTERPRET, "compile": COMPILE}[case]], case == "interpret", seconds=400)
