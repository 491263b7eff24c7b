"""Errors for directories without adapter_config.json or adapter_model.safetensors: what to use instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

from motet.core import error_codes
from motet.core.errors import AdapterRefused

_SHARD = re.compile(r"adapter_model-\d+-of-(\d+)\.safetensors")
NO_WEIGHTS = "has no adapter_model.safetensors"
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")
_MAX_ENTRIES = 4096


def no_weights(directory: Path) -> AdapterRefused:
    """The error for a `directory` without adapter_model.safetensors.

    It is ADAPTER_UNREADABLE if no other format is recognised: the file may still be written.
    """
    reason = instead_of_weights(names_in(directory))
    return AdapterRefused(
        f"the adapter {reason or NO_WEIGHTS}", code=None if reason else error_codes.ADAPTER_UNREADABLE
    )


def instead_of_weights(names: list[str]) -> str:
    """The form of weights that files with these `names` have, as a verb phrase; "" if it is not recognised."""
    if shards := [match[1] for name in names if (match := _SHARD.fullmatch(name))]:
        return (
            f"has its weights split over {int(shards[0])} files ({_first(names, _SHARD)}, …); join them into one "
            "adapter_model.safetensors, for example by loading and saving the adapter with PEFT"
        )
    if pickled := [name for name in _PICKLED if name in names]:
        return f"{NO_WEIGHTS}; {pickled[0]} is not supported, since unpickling runs code: save with safetensors"
    if "adapters.safetensors" in names or "adapters.npz" in names:
        return f"{NO_WEIGHTS}, but MLX's adapters file; {MLX}"
    other = other_formats(names)
    return NO_WEIGHTS + other if other else ""


MLX = (
    "convert it to PEFT's format: transpose lora_a and lora_b, save them as "
    "base_model.model.<module>.lora_A.weight and .lora_B.weight, and write an adapter_config.json with r and "
    "lora_alpha = r times scale"
)


def no_config(directory: Path) -> str:
    """The message for a `directory` without adapter_config.json."""
    return "the adapter has no adapter_config.json" + other_formats(names_in(directory))


def other_formats(names: list[str]) -> str:
    """The format of files with these `names`, as the end of a sentence; "" if it is not recognised."""
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return f", but {gguf[0]}; GGUF adapters are not supported here: use the PEFT adapter that it was converted from"
    if "lora.safetensors" in names:
        return "; lora.safetensors is in the format of mistral-finetune, which is not supported: train with PEFT"
    if checkpoints := [name for name in names if name.startswith("checkpoint-")]:
        return f", but contains {checkpoints[0]}; use that directory"
    if "model.safetensors" in names or "pytorch_model.bin" in names or "model.safetensors.index.json" in names:
        return ", but a full model; only LoRA adapters can be served with the base model"
    return ""


def names_in(directory: Path) -> list[str]:
    """The sorted names in `directory`, at most _MAX_ENTRIES of them."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(_MAX_ENTRIES), strict=False))
    except OSError:
        return []


def _first(names: list[str], pattern: re.Pattern[str]) -> str:
    return next(name for name in names if pattern.fullmatch(name))
