"""Checks that tensors in an adapter's file that are not LoRA's are exact copies of the base's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from motet.core.errors import AdapterRefused, Unavailable
from motet.engine.adapters.safetensors_file import SafetensorsFile

_BLOCK_BYTES = 16 << 20


def check_copies(weights: SafetensorsFile, copies: Mapping[str, str], base: Path) -> None:
    """Raise AdapterRefused for the first tensor in `copies` that differs from the base tensor of that name.

    A copy has the same bits as the base's tensor converted to the copy's dtype: training in 16 bits saves a rounded
    base, and training in 32 bits saves the base's 16 bits widened. `base` is the base model's directory.
    """
    for name, original in sorted(copies.items()):
        try:
            file = _file_of(original, base)
        except (OSError, ValueError) as error:
            raise Unavailable(f"the base model's weights cannot be read: {error}") from error
        try:
            if file is None or not _same(weights, name, file, original):
                raise AdapterRefused(
                    f"tensor {name} is not a copy of the base's {original}: "
                    + ("trained biases" if name.endswith("bias") else "trained embeddings, heads and base weights")
                    + " are not supported yet; train LoRA alone"
                )
        finally:
            if file is not None:
                file.close()


def _file_of(name: str, base: Path) -> SafetensorsFile | None:
    """The base's file with the tensor, or None. Raises OSError, ValueError."""
    index = base / "model.safetensors.index.json"
    if index.is_file():
        shard = json.loads(index.read_bytes())["weight_map"].get(name)
        return SafetensorsFile.open(base / shard) if shard else None
    for path in sorted(base.glob("*.safetensors")):
        file = SafetensorsFile.open(path)
        if name in file.tensors:
            return file
        file.close()
    return None


def _same(weights: SafetensorsFile, name: str, base: SafetensorsFile, original: str) -> bool:
    ours, theirs = weights.tensors[name], base.tensors[original]
    if ours.shape != theirs.shape or not ours.dtype.is_floating_point or 0 in ours.shape:
        return False
    step = max(1, _BLOCK_BYTES * ours.shape[0] // ours.bytes)
    for start in range(0, ours.shape[0], step):
        rows = slice(start, min(start + step, ours.shape[0]))
        copy, converted = weights.rows(name, rows), base.rows(original, rows).to(ours.dtype)
        if not torch.equal(copy.contiguous().view(torch.uint8), converted.contiguous().view(torch.uint8)):
            return False
    return True
