"""Reads an adapter's tensors, matches them to the model's modules, checks them and cuts out a rank's shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motet.core import error_codes
from motet.core.adapter_directory_errors import no_weights
from motet.core.errors import AdapterRefused
from motet.core.messages import LoraEntry
from motet.engine.adapters.peft_config import LoraConfig
from motet.engine.adapters.safetensors_file import DamagedFile, SafetensorsFile, TensorInfo
from motet.engine.adapters.tensor_names import AdapterLayout, LoraNames, lora_modules
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.layers.linear import LinearSpec
from motet.engine.models.architectures import ModelConfig
from motet.engine.models.linear_specs import linear_specs

WEIGHTS = "adapter_model.safetensors"
_BLOCK = 1 << 24
"""Elements of a delta computed at once."""

MAX_DELTA = torch.finfo(torch.float32).max ** 0.5
"""Above it, the square in the next norm overflows."""


@dataclass(frozen=True)
class LoraPair:
    """One module's pair in PEFT's layout: a [rank, inputs], b [outputs, rank], both of the whole module."""

    entry: LoraEntry
    spec: LinearSpec
    a: Tensor
    b: Tensor


def largest_adapter(model: ModelConfig, max_rank: int) -> int:
    """Bytes of the largest adapter that can be served: every module at the highest rank, in fp32."""
    width = sum(spec.inputs + part.outputs for spec in linear_specs(model).values() for part in spec.parts)
    return model.num_layers * width * max_rank * 4


@contextmanager
def open_weights(directory: Path) -> Iterator[SafetensorsFile]:
    """The adapter's one safetensors file. Raises AdapterRefused if it is missing, pickled or damaged."""
    try:
        weights = SafetensorsFile.open(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise no_weights(directory) from error
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error
    try:
        yield weights
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error
    finally:
        weights.close()


def read_pairs(
    weights: SafetensorsFile, layout: AdapterLayout, config: LoraConfig, model: ModelConfig, max_rank: int
) -> list[LoraPair]:
    """The adapter's pairs, in the model's order. Raises AdapterRefused with the tensor that does not fit.

    Checks the shapes in the file's header before reading a tensor, so it reads no more than the highest rank needs.
    """
    modules = lora_modules(model)
    stated = config.modules({names.peft_module: layer for (layer, _), names in layout.pairs.items()})
    fitting: list[tuple[LoraEntry, LinearSpec, LoraNames]] = []
    for (layer, module), names in sorted(layout.pairs.items()):
        spec, part = modules[module]
        found = stated[names.peft_module]
        if not found.targeted:
            raise AdapterRefused(
                f"tensor {names.a} is in the file but adapter_config.json does not target {names.peft_module}; "
                "add it to target_modules"
            )
        check_rank(names.peft_module, found.rank, max_rank)
        _check_tensor(names.a, weights.tensors[names.a], (found.rank, spec.inputs))
        _check_tensor(names.b, weights.tensors[names.b], (part.outputs, found.rank))
        fitting.append((LoraEntry(layer, part.name, found.rank, found.scale), spec, names))
    return [LoraPair(entry, spec, _finite(weights, n.a), _finite(weights, n.b)) for entry, spec, n in fitting]


def check_rank(module: str, rank: int, max_rank: int) -> None:
    """Raise AdapterRefused if the rank is above the server's limit."""
    if rank > max_rank:
        raise AdapterRefused(f"{module} has rank {rank} and the maximum is {max_rank} (--max-adapter-rank)", param="r")


def check_magnitudes(pairs: Iterable[LoraPair], dtype: torch.dtype) -> None:
    """Raise AdapterRefused with the module and side if an adapter's values overflow in `dtype`."""
    largest_number = torch.finfo(dtype).max
    limit = min(largest_number, MAX_DELTA)
    for pair in pairs:
        scale = abs(pair.entry.scale)
        where = f"layer {pair.entry.layer}, {pair.entry.module}"
        largest = {side: float(tensor.abs().max()) for side, tensor in (("A", pair.a.float()), ("B", pair.b.float()))}
        for side, value in largest.items():
            if value > largest_number or value * (scale if side == "A" else 1.0) > MAX_DELTA:
                raise AdapterRefused(
                    f"{where}: lora_{side} has values up to {value:.3g} (scale {pair.entry.scale:.3g}), which overflow "
                    f"in {_name(dtype)}"
                )
        bound = largest["A"] * largest["B"] * pair.entry.lora_rank * scale
        if bound > limit and (delta := _largest_delta(pair) * scale) > limit:
            raise AdapterRefused(
                f"{where}: lora_B lora_A times the scale {pair.entry.scale:.3g} has values up to {delta:.3g}, which "
                f"overflow in {_name(dtype)}"
            )


def shard_pair(pair: LoraPair, group: ShardGroup, dtype: torch.dtype) -> dict[str, Tensor]:
    """A rank's part: A [rank, inputs] and B [rank, outputs]; B is split where outputs are, A where inputs are."""
    a = pair.a[:, pair.spec.columns(group)]
    b = pair.b.T[:, pair.spec.outputs(pair.entry.module, group)]
    name = f"{pair.entry.layer}.{pair.entry.module}"
    return {f"{name}.A": a.to(dtype).contiguous(), f"{name}.B": b.to(dtype).contiguous()}


def _largest_delta(pair: LoraPair) -> float:
    """The largest magnitude in B A, before the scale, in fp64."""
    a, rows = pair.a.double(), max(1, _BLOCK // pair.a.shape[1])
    return max(float((block.double() @ a).abs().max()) for block in pair.b.split(rows))


def _check_tensor(name: str, place: TensorInfo, shape: tuple[int, int]) -> None:
    """Raise AdapterRefused unless the tensor has that shape and is floating point."""
    if 0 in place.shape:
        raise AdapterRefused(
            f"tensor {name} was saved empty, with shape {list(place.shape)}; DeepSpeed ZeRO-3 does that unless the "
            "weights are gathered: set stage3_gather_16bit_weights_on_model_save and save again"
        )
    if place.shape != shape:
        raise AdapterRefused(
            f"tensor {name} has shape {list(place.shape)}; this model and adapter_config.json's rank expect "
            f"{list(shape)}"
        )
    if not place.dtype.is_floating_point:
        raise AdapterRefused(f"tensor {name} is {_name(place.dtype)}; it must be floating point")


def _finite(weights: SafetensorsFile, name: str) -> Tensor:
    tensor = weights.read(name)
    if not bool(torch.isfinite(tensor.float()).all()):
        raise AdapterRefused(f"tensor {name} contains NaN or infinity")
    return tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unreadable(error: OSError | ValueError) -> AdapterRefused:
    reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
    code = error_codes.ADAPTER_UNREADABLE if isinstance(error, DamagedFile) else None
    return AdapterRefused(f"{WEIGHTS} cannot be read: {reason}", code=code)
