"""Reads one rank's part of a model from its safetensors files; fails on missing and on unused tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from motet.core.errors import StartupError
from motet.engine.kernels.quantized_weight import FP8, StoredWeight

_MAX_HEADER_BYTES = 100 << 20


def check_safetensors(path: Path) -> None:
    """Raise ValueError if the file is truncated: mapping a truncated file would kill the process."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError("the file is truncated, or is not a safetensors file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((int(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError("its safetensors header is invalid") from error
    if size != 8 + length + end:
        raise ValueError(f"the file has {size} bytes; its header says {8 + length + end}")


def _weight_files(directory: Path) -> list[Path]:
    """The files in the index, or else all. Raises StartupError if there are none, or the index cannot be read."""
    index = directory / "model.safetensors.index.json"
    paths = sorted(directory.glob("*.safetensors"))
    if index.is_file():
        try:
            paths = sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartupError(f"{index} cannot be read: {error!r}; download the model again", param="model") from error
    if not paths:
        raise StartupError(
            f"{directory} has no *.safetensors files; other weight formats are not supported", param="model"
        )
    return paths


class Checkpoint:
    """The tensors of all *.safetensors files in a directory."""

    _scaled: frozenset[str] = frozenset()
    """The weights that are stored with scales; none in a checkpoint that has a `read` of its own."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        """Raises StartupError if there are no files, or one is truncated."""
        self._dtype, self._device, self._directory = dtype, device, directory
        self._files: dict[str, Any] = {}
        for path in _weight_files(directory):
            try:
                check_safetensors(path)
                handle = safe_open(str(path), framework="pt")
            except (OSError, ValueError, SafetensorError) as error:
                raise StartupError(f"{path}: {error}; download the model again", param="model") from error
            self._files.update((name, handle) for name in list(handle.keys()))
        self._unread = set(self._files)
        self._scaled = frozenset(name.removesuffix("_scale") for name in self._files if name.endswith(".weight_scale"))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(
        self, name: str, shape: tuple[int, ...], rows: slice = slice(None), columns: slice | None = None
    ) -> Tensor:
        """Rows, and columns, of a tensor in the engine's dtype. Raises StartupError if its shape is not `shape`, or if
        it is not of 16 bits or more."""
        tensor = self._stored(name, shape, rows, columns)
        if not tensor.is_floating_point() or tensor.itemsize == 1:
            raise StartupError(
                f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is not supported for this "
                "tensor; use the unquantised checkpoint",
                param="model",
            )
        return tensor.to(device=self._device, dtype=self._dtype)

    def read_weight(
        self, module: str, shape: tuple[int, int], rows: slice = slice(None), columns: slice | None = None
    ) -> StoredWeight:
        """Rows, and columns, of a linear module's weight: as it is stored if it is quantised, else in the engine's
        dtype. Raises StartupError if its shape is not `shape`, or its scales are missing."""
        name = f"{module}.weight"
        if name not in self._scaled:
            dense = self.read(name, shape, rows, columns)
            return StoredWeight(dense, dense.dtype)
        values = self._stored(name, shape, rows, columns)
        scales = self._scales(f"{name}_scale", shape[0])[rows]
        if values.dtype not in (FP8, torch.int8):
            kind = str(values.dtype).removeprefix("torch.")
            raise StartupError(f"{name} is stored as {kind} with scales, which is not supported", param="model")
        return StoredWeight(values.to(self._device), self._dtype, scales.to(self._device))

    def _scales(self, name: str, outputs: int) -> Tensor:
        """The fp32 scales [outputs, 1] of a weight; a scale for the whole tensor is repeated."""
        shape = tuple(self._files[name].get_slice(name).get_shape())
        if shape not in ((), (1,), (outputs,), (outputs, 1)):
            raise StartupError(f"{name} has shape {list(shape)}; expected one scale, or [{outputs}, 1]", param="model")
        self._unread.discard(name)
        scales: Tensor = self._files[name].get_tensor(name)
        return scales.float().reshape(-1, 1).expand(outputs, 1)

    def _stored(self, name: str, shape: tuple[int, ...], rows: slice, columns: slice | None) -> Tensor:
        """Rows, and columns, of a tensor as it is stored."""
        if name not in self._files:
            raise StartupError(f"{self._directory} has no tensor {name}", param="model")
        piece = self._files[name].get_slice(name)
        if tuple(piece.get_shape()) != shape:
            raise StartupError(f"{name} has shape {list(piece.get_shape())}; expected {list(shape)}", param="model")
        self._unread.discard(name)
        tensor: Tensor = piece[rows] if columns is None else piece[rows, columns]
        return tensor

    def finish(self, ignorable: str) -> None:
        """Raise StartupError if there are unread tensors whose names do not match the pattern `ignorable`."""
        left = sorted(name for name in self._unread if not re.fullmatch(ignorable, name))
        if left:
            raise StartupError(
                f"{self._directory} has {len(left)} tensors that this architecture does not use, such as {left[0]}",
                param="model",
            )
        self._files.clear()
