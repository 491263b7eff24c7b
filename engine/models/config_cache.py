"""Caches the records made from config files on disk, so that the next process starts without transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from motet.core.paths import cache_directory, write_file

T = TypeVar("T")

_ENGINE = Path(__file__).parent.parent
_MODELS = _ENGINE / "models"
_CODE = (_MODELS / "architectures.py", _MODELS / "quantization.py", _ENGINE / "layers" / "rotary.py", Path(__file__))
"""The code that makes the records: a change of it invalidates them."""


def cached_record(content: bytes, kind: type[T], make: Callable[[], T]) -> T:
    """The record of a config file with that content, of type `kind`: the cached one, else what `make` returns.

    The key is the content, the code that makes records, and transformers' version. Raises what `make` raises; with an
    unusable cache or a damaged file, `make` is called.
    """
    parts = [content, version("transformers").encode(), *(file.read_bytes() for file in _CODE)]
    name = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    file = cache_directory() / "configs" / f"{name}.json"
    with suppress(OSError, ValueError, AttributeError):
        return msgspec.json.decode(_checked(file.read_bytes()), type=kind, dec_hook=_from_json)
    record = make()
    content = msgspec.json.encode(record, enc_hook=_to_json)
    with suppress(OSError):
        write_file(file, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    return record


def _checked(stored: bytes) -> bytes:
    """The record in a file, which begins with its digest. Raises ValueError if the file is damaged."""
    digest, _, content = stored.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("the digest does not match")
    return content


def _to_json(value: Any) -> Any:
    if isinstance(value, torch.Tensor):  # of fp32, which JSON's numbers hold exactly
        return value.tolist()
    return str(value).removeprefix("torch.")  # a torch.dtype


def _from_json(kind: type, value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float32) if kind is torch.Tensor else getattr(torch, str(value))
