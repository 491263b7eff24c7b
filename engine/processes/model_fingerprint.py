"""A digest by which hosts notice that they have different models. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from motet.core.errors import StartupError

SAMPLES, SAMPLE_BYTES = 16, 4096
"""Of each weight file: a fine-tune changes nearly all weights, and reading them all would take minutes."""

IGNORED = ("transformers_version", "_name_or_path")
"""Fields of config.json that do not describe the model."""


def model_fingerprint(directory: Path) -> str:
    """The digest of a model's config, and of the sizes and samples of its weight files. Raises StartupError."""
    content = hashlib.sha256()
    try:
        config = json.loads((directory / "config.json").read_bytes())
        content.update(json.dumps({k: v for k, v in config.items() if k not in IGNORED}, sort_keys=True).encode())
        for path in sorted(directory.glob("*.safetensors")):
            size = path.stat().st_size
            content.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for i in range(SAMPLES):
                    file.seek(size * i // SAMPLES)
                    content.update(file.read(SAMPLE_BYTES))
    except (OSError, ValueError, AttributeError) as error:
        raise StartupError(f"the model in {directory} cannot be read: {error}", param="model") from error
    return content.hexdigest()[:32]
