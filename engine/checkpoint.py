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

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(
        self, name: str, shape: tuple[int, ...], rows: slice = slice(None), columns: slice | None = None
    ) -> Tensor:
        """Rows, and columns, of a tensor in the engine's dtype. Raises StartupError if its shape is not `shape`."""
        if name not in self._files:
            raise StartupError(f"{self._directory} has no tensor {name}", param="model")
        piece = self._files[name].get_slice(name)
        if tuple(piece.get_shape()) != shape:
            raise StartupError(f"{name} has shape {list(piece.get_shape())}; expected {list(shape)}", param="model")
        self._unread.discard(name)
        tensor: Tensor = piece[rows] if columns is None else piece[rows, columns]
        return tensor.to(device=self._device, dtype=self._dtype)

    def finish(self, ignorable: str) -> None:
        """Raise StartupError if there are unread tensors whose names do not match the pattern `ignorable`."""
        left = sorted(name for name in self._unread if not re.fullmatch(ignorable, name))
        if left:
            raise StartupError(
                f"{self._directory} has {len(left)} tensors that this architecture does not use, such as {left[0]}",
                param="model",
            )
        self._files.clear()
