"""Converts a GGUF file into a transformers directory; run it as `python -m motet.engine.models.convert_gguf`.

transformers dequantises the weights. The directory has fp32 safetensors, a config without quantisation, and the
tokenizer with its chat template. Its name has a hash of the file, and it is created completely or not at all.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from motet.core.errors import StartupError
from motet.core.paths import build_directory

LAYOUT = 1
"""Part of the cache key. Increase it when the written files change."""


def converted_directory(gguf: Path, cache: Path) -> Path:
    """The path of the conversion of `gguf`, which may not exist yet. Reads the whole file to hash it."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache / "models" / f"{gguf.stem}-{digest[:16]}-v{LAYOUT}"


def convert_gguf(gguf: Path, cache: Path) -> Path:
    """Convert `gguf` and return the directory. Raises StartupError if the file cannot be read as a model."""
    target = converted_directory(gguf, cache)

    def fill(scratch: Path) -> None:
        print(f"motet: converting {gguf.name} (once, about a minute)", file=sys.stderr, flush=True)
        try:
            _write(gguf, scratch)
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            raise StartupError(f"{gguf} cannot be converted: {error}", param="model") from error

    return build_directory(target, fill)


def _write(gguf: Path, directory: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True)
    # The loaded config has the quantisation, which the written weights have not.
    config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(directory)
    GenerationConfig(eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name not in tied}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Convert argv[1] into the cache argv[2] and print the directory; one line and exit code 2 on failure."""
    try:
        print(convert_gguf(Path(sys.argv[1]), Path(sys.argv[2])))
    except StartupError as error:
        print(f"motet: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
