"""`gguf`: a base model in a local .gguf file. The engine converts it once and caches the result."""

from __future__ import annotations

from pathlib import Path

from motet.core.errors import StartupError
from motet.core.hookspecs import Register, hookimpl
from motet.core.model_source import ModelLocation, ModelSource

MAGIC = b"GGUF"


class GgufFiles(ModelSource):
    """Claims every `--model` that ends in `.gguf`."""

    def claims(self, ref: str) -> bool:
        """Whether `ref` is the name of a GGUF file."""
        return ref.lower().endswith(".gguf")

    def locate(self, ref: str) -> ModelLocation:
        """The file `ref`. Raises StartupError if it cannot be read or is not GGUF."""
        path = Path(ref).expanduser().resolve()
        try:
            with path.open("rb") as file:
                magic = file.read(len(MAGIC))
        except OSError as error:
            raise StartupError(f"--model: cannot read {path}: {error.strerror}", param="model") from error
        if magic != MAGIC:
            raise StartupError(f"--model: {path} is not a GGUF file", param="model")
        return ModelLocation(path, "gguf", path.stem)


@hookimpl
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add `gguf`."""
    register("gguf", GgufFiles())
