"""Reads a safetensors file tensor by tensor, without mmap: truncating a mapped file would kill the process."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_HEADER_BYTES = 16 << 20
LFS_POINTER = b"version https://git-lfs"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class DamagedFile(ValueError):
    """The file is cut short or damaged, for instance because it is still being written."""

    def __init__(self, what: str) -> None:
        super().__init__(f"cut short or damaged: {what}")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype and shape, and where its bytes are in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin


class SafetensorsFile:
    """An open safetensors file: `tensors` in the order of their names, and `header` as it is in the file.

    Raises ValueError, on opening and on reading, for a file that is damaged, cut short or of another kind.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ValueError("it is a git-lfs pointer, not the file itself; run: git lfs pull")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise DamagedFile("its header is longer than the file or than 16 MiB")
        file.seek(8)
        self.header = file.read(length)
        self._begin = 8 + length
        self.tensors = _tensor_infos(self.header, size - self._begin)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """The file at `path`. Raises OSError, and ValueError as the class does."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ValueError("it is not a regular file")
        file = os.fdopen(descriptor, "rb")
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        place = self.tensors[name]
        return self._read(place, place.begin, place.bytes).reshape(place.shape)

    def rows(self, name: str, rows: slice) -> Tensor:
        """A range of a tensor's rows; `rows` must have both bounds."""
        place = self.tensors[name]
        width = place.bytes // place.shape[0]
        return self._read(place, place.begin + rows.start * width, (rows.stop - rows.start) * width).reshape(
            rows.stop - rows.start, *place.shape[1:]
        )

    def _read(self, place: TensorInfo, begin: int, count: int) -> Tensor:
        self._file.seek(self._begin + begin)
        data = bytearray(count)
        if self._file.readinto(data) != count:  # type: ignore[attr-defined]
            raise DamagedFile("it became shorter while it was read")
        return torch.frombuffer(data, dtype=place.dtype) if count else torch.empty(0, dtype=place.dtype)


def _tensor_infos(header: bytes, size: int) -> dict[str, TensorInfo]:
    """The tensors in a header; they must fill the `size` bytes after it without gaps."""
    try:
        described = json.loads(header)
        places = {name: _place(entry) for name, entry in described.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedFile(f"its header cannot be read ({type(error).__name__})") from error
    end = 0
    for place in sorted(places.values(), key=lambda place: (place.begin, place.end)):
        if place.begin != end or place.bytes != math.prod(place.shape) * place.dtype.itemsize:
            raise DamagedFile("its header does not fit its tensors")
        end = place.end
    if end != size:
        raise DamagedFile(f"it has {size} bytes of tensors, and its header says {end}")
    return dict(sorted(places.items()))


def _place(entry: dict[str, Any]) -> TensorInfo:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end)):
        raise TypeError("not a size")
    return TensorInfo(_DTYPES[entry["dtype"]], tuple(shape), begin, end)
