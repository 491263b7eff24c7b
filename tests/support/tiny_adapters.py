"""Complete LoRA adapters of a tiny Llama, as tensors and as directories. The model itself is not loaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from motet.engine.models.architectures import from_transformers

MODEL = from_transformers(
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=64,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=4,
    )
)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 4
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": list(LINEARS)}
PREFIX = "base_model.model.model.layers"
Q0 = f"{PREFIX}.0.self_attn.q_proj"

Tensors = dict[str, Tensor]


def name_of(layer: int, module: str, side: str) -> str:
    """A tensor's name as PEFT saves it."""
    place = "self_attn" if module in LINEARS[:4] else "mlp"
    return f"{PREFIX}.{layer}.{place}.{module}.lora_{side}.weight"


def adapter(rank: int = RANK) -> Tensors:
    """A complete adapter, on every module of every layer."""
    torch.manual_seed(rank)
    sizes = {"o_proj": (24, 24), "gate_proj": (24, 36), "up_proj": (24, 36), "down_proj": (36, 24)}
    tensors: Tensors = {}
    for layer in range(3):
        for module in LINEARS:
            inputs, outputs = sizes.get(module, (24, 24))
            tensors[name_of(layer, module, "A")] = torch.randn(rank, inputs)
            tensors[name_of(layer, module, "B")] = torch.randn(outputs, rank)
    return tensors


def write(directory: Path, tensors: Tensors, **config: object) -> Path:
    """Write an adapter into a directory."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory
