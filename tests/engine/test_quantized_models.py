"""Quantised bases with adapters on top, against transformers and PEFT in fp32 with the dequantised weights.

The engine runs on the CPU, at one and two shards. For a row-split layer each rank quantises its own columns. With fp8,
the engine also rounds each linear layer's input; so does the reference, in a hook.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.equality import TOLERANCE, Scored, assert_close
from support.peft_oracle import LINEARS, AdapterCase, Oracle, write_adapter
from support.tiny_models import write_even_llama
from torch import Tensor

from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.kernels.quantized_weight import (
    FP8,
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Quantization,
    StoredWeight,
    fp8_rows,
    linear_weight,
)
from motet.engine.llm import Engine

PARAMS = SamplingParams(max_tokens=6, temperature=0.0, logprobs=0)
SLOW = pytest.mark.slow
ENGINES = [
    ("int4", 1),
    *[pytest.param(*engine, marks=SLOW) for engine in [("int4", 2), ("int8", 1), ("int8", 2), ("fp8", 1), ("fp8", 2)]],
]
CHECKPOINTS = [
    ("int8", False, "int8"),
    *[pytest.param("fp8", *case, marks=SLOW) for case in [(False, "auto"), (True, "fp8")]],
]
CASES = [AdapterCase(8, "plain", "all"), AdapterCase(3, "rslora", "qv"), AdapterCase(16, "patterns", "some_layers")]


def shares(name: str, whole: Tensor, shards: int) -> Iterator[Tensor]:
    """The ranks' columns, for a layer whose inputs are split; else the whole."""
    return iter(whole.chunk(shards, -1) if ("o_proj" in name or "down_proj" in name) else [whole])


def dequantized(dense: Tensor, kind: Quantization) -> Tensor:
    """The weight after quantisation."""
    weight = linear_weight(StoredWeight(dense, dense.dtype), kind)
    assert isinstance(weight, (Fp8Weight, Int8Weight, Int4Weight))
    return weight.dequantized(dense.dtype)


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    """The names and modules of a transformers model's linear layers."""
    return ((name, module) for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in LINEARS)


def dequantize(model: Any, kind: Quantization, shards: int) -> None:
    """Give the linear layers of a transformers model the weights that the engine's ranks have."""
    for name, module in linears(model):
        parts = [dequantized(part.contiguous(), kind) for part in shares(name, module.weight.data, shards)]
        module.weight.data = torch.cat(parts, 1)
    if kind == "fp8":
        round_inputs(model, shards)


def round_inputs(model: Any, shards: int) -> None:
    """Round the inputs of all linear layers to float8, as the engine's ranks do."""
    for name, module in linears(model):
        module.register_forward_pre_hook(rounding(name, shards))


def rounding(name: str, shards: int) -> Any:
    """A hook that rounds a layer's input [1, T, in] to float8, rank by rank."""

    def hook(module: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
        parts = [fp8_rows(part) for part in shares(name, arguments[0][0], shards)]
        return (torch.cat([values.float() * scales for values, scales in parts], 1)[None],)

    return hook


async def answers(
    directory: Path, settings: Settings, prompts: list[list[int]], adapters: list[Path | None]
) -> list[list[Scored]]:
    """Greedy answers of all prompts in one batch."""
    async with Engine.open(directory, settings) as engine:
        prepared = [None if a is None else await engine.adapter(a) for a in adapters]
        pairs = zip(prompts, prepared, strict=True)
        runs = await asyncio.gather(*(engine.complete(prompt, PARAMS, adapter) for prompt, adapter in pairs))
    return [[Scored(e.token, float("nan") if e.logprob is None else e.logprob) for e in events] for events in runs]


def assert_mostly_close(ours: list[list[Scored]], reference: list[list[Scored]], tolerance: float = TOLERANCE) -> None:
    """Half of the logprobs agree within the tolerance.

    Rounding to float8 makes a step of a difference in an activation's last bit, if it is at the middle of two values.
    One token in thirty has such an activation, and the logprobs after it are apart by up to 0.6; a reference in
    float64 differs in the same way from one in float32.
    """
    apart = []
    for mine, theirs in zip(ours, reference, strict=True):
        same = itertools.takewhile(lambda pair: pair[0].token == pair[1].token, zip(mine, theirs, strict=True))
        apart += [abs(one.logprob - other.logprob) for one, other in same]
    assert len(apart) > sum(map(len, ours)) / 2
    assert statistics.median(apart) < tolerance


@pytest.mark.parametrize(("kind", "shards"), ENGINES)
def test_equal_to_the_dequantised_model_with_adapters(kind: Quantization, shards: int, tmp_path: Path) -> None:
    directory = write_even_llama(tmp_path / "model")
    oracle = Oracle(directory)
    written = [write_adapter(oracle.base, case, tmp_path / case.name) for case in CASES]
    lengths = [5] * 8 if kind == "fp8" else [5, 14, 23, 32]
    adapters: list[Path | None] = [[*written, None][i % 4] for i in range(len(lengths))]
    prompts = [[(7 * i + 13 * j + j * j) % 259 for j in range(length)] for i, length in enumerate(lengths)]
    settings = Settings(device="cpu", quantize=kind, shards=shards, kv_memory="16MiB", adapter_slots=4)
    ours = asyncio.run(answers(directory, settings, prompts, adapters))
    runs = list(zip(prompts, [[s.token for s in solo] for solo in ours], adapters, strict=True))
    plain = [oracle.score(*run)[0] for run in runs]
    dequantize(oracle.base, kind, shards)
    references = [oracle.score(*run) for run in runs]
    if kind == "fp8":
        assert_mostly_close(ours, [scored for scored, _ in references])
    else:
        for solo, (scored, margins) in zip(ours, references, strict=True):
            assert_close(solo, scored, margins)
    with pytest.raises(AssertionError):  # the quantised model is not the plain one
        assert_mostly_close(ours, plain, 10 * TOLERANCE)


def quantize_files(directory: Path, kind: Quantization, per_tensor: bool) -> None:
    """Quantise a directory's weights as compressed-tensors does, in place."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if n.split(".")[-2] in LINEARS]:
        dense = tensors.pop(name)
        largest = dense.abs().max()[None] if per_tensor else dense.abs().amax(1, keepdim=True)
        scales = largest / (448 if kind == "fp8" else 127)
        values = dense / scales
        tensors[name] = values.to(FP8) if kind == "fp8" else values.round().to(torch.int8)
        tensors[f"{name}_scale"] = scales.bfloat16()
        tensors[name.replace("weight", "input_scale")] = torch.ones(1)
    save_file(tensors, path, metadata={"format": "pt"})
    weights = {
        "num_bits": 8,
        "type": "float" if kind == "fp8" else "int",
        "strategy": "tensor" if per_tensor else "channel",
    }
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
    }
    (directory / "config.json").write_text(json.dumps(config))


def write_plain(quantised: Path, directory: Path) -> Path:
    """The same model with the weights that the quantised files stand for, in fp32."""
    tensors = load_file(quantised / "model.safetensors")
    scales = {name: tensors.pop(name).float() for name in list(tensors) if name.endswith("_scale")}
    for name, scale in scales.items():
        if name.endswith("weight_scale"):
            weight = name.removesuffix("_scale")
            tensors[weight] = tensors[weight].float() * scale.reshape(-1, 1)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(("kind", "per_tensor", "setting"), CHECKPOINTS)
def test_quantised_checkpoints(kind: Quantization, per_tensor: bool, setting: str, tmp_path: Path) -> None:
    """Their own weights are served: dequantised with `auto` on the CPU, else in the stored form."""
    directory = write_even_llama(tmp_path / "model")
    quantize_files(directory, kind, per_tensor)
    oracle = Oracle(write_plain(directory, tmp_path / "plain"))
    adapters = [write_adapter(oracle.base, CASES[0], tmp_path / "adapter"), None] * 3
    if setting == "fp8":
        round_inputs(oracle.base, 1)
    prompts = [[(3 + 7 * i + 13 * j + j * j) % 259 for j in range(5)] for i in range(len(adapters))]
    settings = Settings(device="cpu", quantize=setting, kv_memory="16MiB", adapter_slots=4)
    ours = asyncio.run(answers(directory, settings, prompts, adapters))
    runs = zip(prompts, [[s.token for s in mine] for mine in ours], adapters, strict=True)
    references = [oracle.score(*run) for run in runs]
    if setting == "fp8":
        assert_mostly_close(ours, [scored for scored, _ in references])
    else:
        for mine, (scored, margins) in zip(ours, references, strict=True):
            assert_close(mine, scored, margins)
