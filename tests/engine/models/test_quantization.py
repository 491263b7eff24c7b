"""Which quantised checkpoints are read, how the others are refused, and what --quantize needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import family_config

from motet.core.errors import StartupError
from motet.engine.lora.pool import ModuleShape
from motet.engine.models.architectures import read_config
from motet.engine.models.quantization import check_shapes, resolve_quantization, stored_quantization

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BF16 = torch.bfloat16


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    """A configuration as compressed-tensors writes it."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "symmetric": True, "strategy": "channel"} | weights}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "none"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}, "fp8"),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fp8"),
        (compressed("float-quantized", type="float"), "fp8"),
        (compressed("float-quantized", type="float", strategy="tensor"), "fp8"),
        (compressed("int-quantized", type="int"), "int8"),
    ],
)
def test_read_formats(config: dict[str, Any] | None, expected: str) -> None:
    assert stored_quantization(config) == expected


SPARSE = compressed("float-quantized", type="float") | {"sparsity_config": {"format": "sparse-24-bitmask"}}


@pytest.mark.parametrize(
    ("config", "method", "instead"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", "int4"),
        ({"quant_method": "gptq", "bits": 8}, "gptq", "int8"),
        ({"quant_method": "awq", "bits": 4}, "awq", "int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bitsandbytes", "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "int8"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao", "int4"),
        ({"quant_method": "mxfp4"}, "mxfp4", "int4"),
        ({"load_in_8bit": True}, "an unknown method", "int8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"fp8 with one scale per block", "fp8"),
        (compressed("pack-quantized", type="int", num_bits=4), r"compressed-tensors \(pack-quantized\)", "int4"),
        (compressed("float-quantized", type="float", strategy="block"), r"compressed-tensors \(float-quant", "fp8"),
        (compressed("int-quantized", type="int", symmetric=False), r"compressed-tensors \(int-quantized\)", "int8"),
        (SPARSE, r"compressed-tensors \(float-quantized\)", "fp8"),
        ({"quant_method": "compressed-tensors"}, r"compressed-tensors \(unknown format\)", "int4"),
    ],
)
def test_refused_formats_are_named(config: dict[str, Any], method: str, instead: str, tmp_path: Path) -> None:
    """Before any weights are read: the directory has none."""
    model = family_config("llama")
    model.architectures = ["LlamaForCausalLM"]
    model.quantization_config = config
    model.save_pretrained(tmp_path)
    message = (
        f"quantised with {method}.*: Motet cannot read them; use the unquantised checkpoint with --quantize {instead}"
    )
    with pytest.raises(StartupError, match=message) as caught:
        read_config(tmp_path)
    assert caught.value.param == "model"


def test_a_read_format_is_part_of_the_models_record(tmp_path: Path) -> None:
    model = family_config("llama")
    model.architectures = ["LlamaForCausalLM"]
    model.quantization_config = compressed("float-quantized", type="float")
    model.save_pretrained(tmp_path)
    for _ in range(2):
        assert read_config(tmp_path).stored_quantization == "fp8"


def test_auto_is_the_checkpoints_form_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_quantization("auto", "fp8", CUDA, BF16) == "fp8"
    assert resolve_quantization("auto", "none", CUDA, BF16) == "none"
    assert resolve_quantization("none", "fp8", CUDA, BF16) == "none"
    assert resolve_quantization("int4", "fp8", CUDA, torch.float16) == "int4"
    assert resolve_quantization("auto", "fp8", CPU, torch.float32) == "none"
    assert resolve_quantization("fp8", "none", CPU, torch.float32) == "fp8"


@pytest.mark.parametrize(
    ("setting", "capability", "dtype", "message"),
    [
        ("fp8", (8, 0), BF16, r"--quantize fp8 needs a GPU of compute capability 8\.9; this one has 8\.0; .* int8"),
        ("int8", (7, 5), BF16, r"--quantize int8 needs .* 8\.0; this one has 7\.5; set --quantize none"),
        ("fp8", (9, 0), torch.float16, "--quantize fp8 computes in bfloat16; set --dtype bfloat16"),
    ],
)
def test_what_the_gpu_does_not_have_is_named(
    setting: str, capability: tuple[int, int], dtype: torch.dtype, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(StartupError, match=message) as caught:
        resolve_quantization(setting, "none", CUDA, dtype)
    assert caught.value.param == "quantize"


def test_sizes_that_fp8_does_not_take() -> None:
    linears = [(ModuleShape("q_proj", 96, 96),), (ModuleShape("down_proj", 132, 96),)]
    check_shapes("fp8", linears[:1])
    check_shapes("int4", linears)
    with pytest.raises(
        StartupError, match=r"down_proj has 132 inputs and 96 outputs on each rank.*; set --quantize int8"
    ):
        check_shapes("fp8", linears)
