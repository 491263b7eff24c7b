"""An adapter's tensors: read, matched to the model's modules, checked, and cut into a rank's shard."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from motet.core.errors import AdapterRefused
from motet.core.messages import LoraEntry
from motet.engine.adapters.peft_config import LoraConfig
from motet.engine.layers.linear import LinearSpec
from motet.engine.models.config import ModelConfig
from motet.engine.models.decoder import linear_specs
from motet.engine.parallel import ShardGroup

HEADER_BYTES = 1 << 20

# One spelling for each: a second one would give a module two pairs.
_NAME = re.compile(r"base_model\.model\.(model\.layers\.(0|[1-9][0-9]{0,5})\.(\w+\.\w+))\.lora_([AB])\.weight")
_PLACES = ("self_attn", "self_attn", "mlp", "mlp")
"""Where in a layer the decoder's fused projections are."""


@dataclass(frozen=True)
class LoraPair:
    """One module's pair as PEFT has it: a [rank, inputs], b [outputs, rank], both of the whole module."""

    entry: LoraEntry
    spec: LinearSpec
    a: Tensor
    b: Tensor


def largest_adapter(model: ModelConfig, max_rank: int) -> int:
    """Bytes of the largest adapter that can be of use: every module at the highest rank, in fp32, and its header."""
    width = sum(spec.inputs + part.outputs for spec in linear_specs(model) for part in spec.parts)
    return model.num_layers * width * max_rank * 4 + HEADER_BYTES


def read_weights(directory: Path, limit: int) -> bytes:
    """The adapter's one safetensors file. Raises AdapterRefused if it is absent, over `limit` bytes, or pickled."""
    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        pickled = [name for name in ("adapter_model.bin", "adapter_model.pt") if (directory / name).exists()]
        hint = f"; {pickled[0]} is not read, since unpickling runs code: save with safetensors" if pickled else ""
        raise AdapterRefused(
            f"the adapter has no adapter_model.safetensors{hint}", code=None if pickled else "adapter_unreadable"
        )
    if path.stat().st_size > limit:
        raise AdapterRefused(
            f"adapter_model.safetensors is larger than {limit} bytes, which the highest rank that this server takes "
            "(--max-adapter-rank) comes to"
        )
    return path.read_bytes()


def parse_weights(data: bytes) -> dict[str, Tensor]:
    """The file's tensors. Raises AdapterRefused if it is cut short or damaged."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise AdapterRefused(
            f"adapter_model.safetensors cannot be read (cut short or damaged): {error}", code="adapter_unreadable"
        ) from error


def match_pairs(tensors: dict[str, Tensor], config: LoraConfig, model: ModelConfig, max_rank: int) -> list[LoraPair]:
    """The adapter's pairs, in the model's order. Raises AdapterRefused naming the tensor that does not fit."""
    modules = {
        f"{place}.{part.name}": (spec, part)
        for place, spec in zip(_PLACES, linear_specs(model), strict=True)
        for part in spec.parts
    }
    sides: dict[tuple[int, str], dict[str, str]] = {}
    for name in tensors:
        found = _NAME.fullmatch(name)
        if found is None or found[3] not in modules or int(found[2]) >= model.num_layers:
            raise AdapterRefused(
                f"tensor {name[:200]} belongs to nothing that this server adapts: {_advice(name, model)}"
            )
        if not config.targets(found[1], int(found[2])):
            raise AdapterRefused(f"tensor {name} is there but adapter_config.json does not target {found[1]}")
        sides.setdefault((int(found[2]), found[1]), {})[found[4]] = name
    if not sides:
        raise AdapterRefused("the adapter has no LoRA tensors; it would have no effect")
    pairs = []
    for (layer, module), names in sorted(sides.items()):
        spec, part = modules[".".join(module.split(".")[3:])]
        if set(names) != {"A", "B"}:
            raise AdapterRefused(
                f"tensor {next(iter(names.values()))} has no counterpart; lora_A and lora_B go together"
            )
        rank = config.rank(module)
        check_rank(module, rank, max_rank)
        a = _checked(names["A"], tensors, (rank, spec.inputs))
        b = _checked(names["B"], tensors, (part.outputs, rank))
        entry = LoraEntry(layer, part.name, rank, config.scale(module))
        pairs.append(LoraPair(entry, spec, a, b))
    return pairs


def check_rank(module: str, rank: int, max_rank: int) -> None:
    """Raise AdapterRefused if the rank is above the server's limit."""
    if rank > max_rank:
        raise AdapterRefused(
            f"{module} has rank {rank} and this server takes up to {max_rank} (--max-adapter-rank)", param="r"
        )


def shard_pair(pair: LoraPair, group: ShardGroup, dtype: torch.dtype) -> dict[str, Tensor]:
    """A rank's part: A [rank, inputs] and B [rank, outputs]; B is split where outputs are, A where inputs are."""
    a, b = pair.a, pair.b.T
    if pair.spec.split == "column":
        b = b[:, group.slice(b.shape[1])]
    else:
        a = a[:, group.slice(a.shape[1])]
    name = f"{pair.entry.layer}.{pair.entry.module}"
    return {f"{name}.A": a.to(dtype).contiguous(), f"{name}.B": b.to(dtype).contiguous()}


def _checked(name: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise AdapterRefused(f"tensor {name} has shape {tuple(tensor.shape)}, and {shape} fits this model and rank")
    if not tensor.is_floating_point():
        raise AdapterRefused(f"tensor {name} is {tensor.dtype}; it must be floating point")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise AdapterRefused(f"tensor {name} contains NaN or infinity")
    return tensor


def _advice(name: str, model: ModelConfig) -> str:
    if "lora_embedding" in name or "embed_tokens" in name or "lm_head" in name:
        return "adapters on the embedding or the head are not supported"
    if "lora_magnitude_vector" in name:
        return "DoRA is not supported"
    if "modules_to_save" in name:
        return "fully trained modules are not supported"
    return f"it may be for another base model (this one is {model.architecture}, {model.num_layers} layers)"
