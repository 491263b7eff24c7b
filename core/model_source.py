"""Base models: the sources that locate one on disk, and the facts about it that every process may know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import msgspec

from motet.core.settings import Settings


class ModelLocation(msgspec.Struct, frozen=True):
    """A base model on disk.

    kind `transformers`: `path` is a directory with config.json, *.safetensors and tokenizer.json.
    kind `gguf`: `path` is a .gguf file, converted once into the cache.
    `aliases` are other names that clients know the model by, such as its hub id.
    """

    path: Path
    kind: Literal["transformers", "gguf"]
    name: str
    aliases: tuple[str, ...] = ()


class ModelSource(ABC):
    """One place that base models come from. Only locates files; the engine reads them."""

    def configure(self, settings: Settings) -> None:  # noqa: B027 (most sources need no settings)
        """Take what this source needs from the server's settings; called once, before any other method."""

    @abstractmethod
    def claims(self, ref: str) -> bool:
        """Whether `--model REF` is this source's to answer; cheap, no network."""

    @abstractmethod
    def locate(self, ref: str) -> ModelLocation:
        """Return the files of `ref`, downloaded first if necessary. Raises StartupError that says what to do."""


class ModelInfo(msgspec.Struct, frozen=True):
    """What the engine says about the model that it has loaded. Sizes are in tokens; `hidden_size` is a vector's."""

    name: str
    architecture: str
    directory: str
    vocab_size: int
    max_context: int
    dtype: str
    shards: int
    eos_token_ids: tuple[int, ...]
    device: str = "cpu"
    hidden_size: int = 0
