"""`demo`: three small adapters for the default base model, included in the package.

Their files are package data in adapters/; tests/training has their training data and the training script.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from motet.core.adapter_source import AdapterListing, AdapterSource
from motet.core.hookspecs import Register, hookimpl
from motet.core.paths import read_regular
from motet.core.settings import Settings
from motet.plugins.sources.directories import DirectoryAdapters

NAME = "demo"
BASES = ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M")
MAX_CONFIG_BYTES = 1 << 20


class _ModelShape(msgspec.Struct):
    """The fields of a base model's config.json that decide whether the adapters' tensors fit."""

    hidden_size: int = 0
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    vocab_size: int = 0


SMOLLM2_135M = _ModelShape(576, 1536, 30, 49152)


class DemoAdapters(DirectoryAdapters):
    """The demo adapters; listed if they fit the base model."""

    def __init__(self) -> None:
        super().__init__(NAME, [Path(str(files(__name__))) / "adapters"])
        self._fits = True

    def configure(self, settings: Settings) -> None:
        """Compare `--model` with the adapters' base model."""
        self._fits = _fits(settings.model)

    async def listing(self) -> Sequence[AdapterListing]:
        """The adapters; none if the server has a different base model."""
        return await super().listing() if self._fits else ()


def _fits(model: str) -> bool:
    """Whether `--model MODEL` is SmolLM2-135M, by its name or by the config in its directory."""
    if model.removeprefix("hub:").partition("@")[0] in BASES:
        return True
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return "smollm2-135m" in path.name.lower()
    try:
        config = read_regular(path / "config.json", MAX_CONFIG_BYTES)
        return msgspec.json.decode(config, type=_ModelShape) == SMOLLM2_135M
    except (OSError, ValueError):
        return False


@hookimpl
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    """Add `demo`."""
    register(NAME, DemoAdapters())
