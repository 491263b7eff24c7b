"""Which quantisation the linear layers have: `--quantize`, and a checkpoint's own `quantization_config`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from motet.core.errors import StartupError
from motet.engine.kernels.quantized_weight import FP8_MULTIPLE, Quantization
from motet.engine.lora.pool import ModuleShape

_FORMATS: dict[str, Quantization] = {"float": "fp8", "int": "int8"}
_LEAST_CAPABILITY = {"fp8": (8, 9), "int8": (8, 0), "int4": (8, 0)}


def stored_quantization(config: Mapping[str, Any] | None) -> Quantization:
    """How a checkpoint with that `quantization_config` stores its linear layers' weights.

    Read are float8_e4m3 and int8 weights with one scale for a tensor or for each output, as compressed-tensors and vLLM
    write them. Raises StartupError for all others.
    """
    if config is None:
        return "none"
    method = str(config.get("quant_method") or "an unknown method").replace("_", "-")
    if method == "fbgemm-fp8":
        return "fp8"
    if method == "fp8":
        if config.get("weight_block_size"):
            raise _unreadable("fp8 with one scale per block of weights", "fp8")
        return "fp8"
    if method == "compressed-tensors":
        return _compressed_tensors(config)
    eight_bits = config.get("load_in_8bit") or config.get("bits") == 8 or "8" in method
    raise _unreadable(method, "int8" if eight_bits else "int4")


def _compressed_tensors(config: Mapping[str, Any]) -> Quantization:
    groups = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
    kinds = {str(weights.get("type")) for weights in groups}
    readable = kinds in ({"float"}, {"int"}) and all(
        weights.get("num_bits") == 8
        and weights.get("strategy") in ("tensor", "channel")
        and weights.get("symmetric", True)
        for weights in groups
    )
    sparse = (config.get("sparsity_config") or {}).get("format", "dense") != "dense"
    if readable and not sparse and not config.get("transform_config"):
        return _FORMATS[kinds.pop()]
    layout = config.get("format") or "unknown format"
    eight_bits = {weights.get("num_bits") for weights in groups} == {8} and len(kinds) == 1
    raise _unreadable(f"compressed-tensors ({layout})", _FORMATS.get(kinds.pop(), "int4") if eight_bits else "int4")


def _unreadable(method: str, instead: str) -> StartupError:
    return StartupError(
        f"the model's weights are quantised with {method}: Motet cannot read them; use the unquantised checkpoint with "
        f"--quantize {instead}",
        param="model",
    )


def resolve_quantization(setting: str, stored: Quantization, device: torch.device, dtype: torch.dtype) -> Quantization:
    """The quantisation that the engine computes with; `auto` is the checkpoint's on CUDA, and none on the CPU.

    Raises StartupError if the GPU, or the compute dtype there, does not support it.
    """
    if device.type != "cuda":
        return "none" if setting == "auto" else cast(Quantization, setting)
    quantization = stored if setting == "auto" else cast(Quantization, setting)
    if quantization == "none":
        return quantization
    capability, least = torch.cuda.get_device_capability(device), _LEAST_CAPABILITY[quantization]
    if capability < least:
        other = "int8" if capability >= _LEAST_CAPABILITY["int8"] else "none"
        raise StartupError(
            f"--quantize {quantization} needs a GPU of compute capability {least[0]}.{least[1]}; this one has "
            f"{capability[0]}.{capability[1]}; set --quantize {other}",
            param="quantize",
        )
    if quantization == "fp8" and dtype != torch.bfloat16:
        raise StartupError(
            "--quantize fp8 computes in bfloat16; set --dtype bfloat16, or --quantize int8", param="quantize"
        )
    return quantization


def check_shapes(quantization: Quantization, linears: Iterable[tuple[ModuleShape, ...]]) -> None:
    """Raise StartupError if a module's shard has a size that the quantisation does not support."""
    if quantization != "fp8":
        return
    for shape in (module for linear in linears for module in linear):
        if shape.inputs % FP8_MULTIPLE or shape.outputs % FP8_MULTIPLE:
            raise StartupError(
                f"--quantize fp8: {shape.name} has {shape.inputs} inputs and {shape.outputs} outputs on each rank, and "
                f"both must be multiples of {FP8_MULTIPLE}; set --quantize int8, or lower --shards",
                param="quantize",
            )
