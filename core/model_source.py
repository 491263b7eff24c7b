"""Base models: the interface of the sources that locate them, and the facts that processes share about one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import msgspec

from motet.core.settings import Settings


class ModelLocation(msgspec.Struct, frozen=True):
    """A base model on disk.

    kind `transformers`: `path` is a directory with config.json, *.safetensors and tokenizer.json.
    kind `gguf`: `path` is a .gguf file, which the engine converts once and caches.
    `aliases` are other names that clients may use for the model, such as its hub id.
    """

    path: Path
    kind: Literal["transformers", "gguf"]
    name: str
    aliases: tuple[str, ...] = ()


class ModelSource(ABC):
    """A source of base models. It only locates files; the engine reads them."""

    def configure(self, settings: Settings) -> None:  # noqa: B027 (most sources need no settings)
        """Read the server's settings; called once, before any other method."""

    @abstractmethod
    def claims(self, ref: str) -> bool:
        """Whether this source handles `--model REF`; must be cheap and not use the network."""

    @abstractmethod
    def locate(self, ref: str) -> ModelLocation:
        """Return the files of `ref`; downloads them if necessary. Raises StartupError that says what to do."""


class ModelInfo(msgspec.Struct, frozen=True):
    """The loaded model, as reported by the engine. `vocab_size`, `max_context` and `max_batch_tokens` are in tokens."""

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
    max_batch_tokens: int = 0
