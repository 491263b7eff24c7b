"""Models and adapters with random weights that are made on the device: an 8B without its 16 GB of files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from motet.core.messages import LoraEntry, PreparedAdapter
from motet.engine.checkpoint import Checkpoint
from motet.engine.lora.adapter_installer import Installer
from motet.engine.lora.pool import ModuleShape
from motet.engine.schedule.plan import InstallAdapter

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    architectures=["LlamaForCausalLM"],
)
TINY_LLAMA = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    architectures=["LlamaForCausalLM"],
)


class RandomCheckpoint(Checkpoint):
    """A checkpoint that has every tensor: norms of ones, other weights normal, as an initialised model has them."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device, self._directory = dtype, device, directory

    def __contains__(self, name: str) -> bool:
        return True

    def read(
        self, name: str, shape: tuple[int, ...], rows: slice = slice(None), columns: slice | None = None
    ) -> Tensor:
        """Random numbers in the shape of the rows and columns."""
        sizes = [len(range(*part.indices(n))) for part, n in zip((rows, columns or slice(None)), shape, strict=False)]
        tensor = torch.empty(sizes, dtype=self._dtype, device=self._device)
        return tensor.fill_(1.0) if name.endswith("norm.weight") else tensor.normal_(0, 0.02)

    def finish(self, ignorable: str) -> None:
        """Nothing is left unread."""


def random_adapter(
    shapes: Mapping[str, tuple[ModuleShape, ...]], ranks: Mapping[str, int], layers: int, file: Path, dtype: torch.dtype
) -> PreparedAdapter:
    """Write an adapter as the loader prepares it, with these LoRA ranks by module (0: absent) in every layer."""
    tensors: dict[str, Tensor] = {}
    entries = []
    for layer in range(layers):
        for shape in (s for parts in shapes.values() for s in parts):
            if rank := ranks[shape.name]:
                prefix = f"{layer}.{shape.name}"
                tensors[f"{prefix}.A"] = (torch.randn(rank, shape.inputs) / shape.inputs**0.5).to(dtype)
                tensors[f"{prefix}.B"] = (torch.randn(rank, shape.outputs) / rank**0.5).to(dtype)
                entries.append(LoraEntry(layer, shape.name, rank, 0.5))
    save_file(tensors, file)
    size = sum(t.nbytes for t in tensors.values())
    return PreparedAdapter(file.stem, file.stem, (str(file),), tuple(entries), size)


def install(installer: Installer, command: InstallAdapter) -> float:
    """Install an adapter and wait for it; returns the seconds."""
    began = time.perf_counter()
    installer.start(command)
    while not (results := installer.finish()):
        time.sleep(1e-4)
    assert [result.error for result in results] == [""]
    return time.perf_counter() - began
