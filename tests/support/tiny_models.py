"""Tiny random checkpoints of every model family, in the format of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

# 12 heads and 6 key-value heads can be split across 1, 2 and 3 ranks; the vocabulary is divisible by none but 1.
COMMON: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 96,
    "intermediate_size": 132,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,  # spreads the logits, so that rounding does not decide greedy choices
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def family_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The config of one family's tiny model, with `changes` to COMMON."""
    common = COMMON | changes
    match family:
        case "llama":
            return LlamaConfig(**common, tie_word_embeddings=True)
        case "llama3":
            return LlamaConfig(
                **common, rope_parameters=LLAMA3_ROPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
            )
        case "mistral":
            return MistralConfig(**common, sliding_window=24, head_dim=16, tie_word_embeddings=False)
        case "qwen2":
            return Qwen2Config(**common, use_sliding_window=True, sliding_window=24, max_window_layers=2)
        case "qwen3":
            return Qwen3Config(**common, head_dim=16, tie_word_embeddings=False)
        case "smollm3":
            return SmolLM3Config(**common, no_rope_layer_interval=2)
    raise ValueError(family)


FAMILIES = ("llama", "llama3", "mistral", "qwen2", "qwen3", "smollm3")


def write_even_llama(directory: Path) -> Path:
    """Write a small Llama whose layers have sizes in multiples of 16 on one and two ranks, as fp8 needs."""
    torch.manual_seed(11)
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 8}
    config = LlamaConfig(**COMMON | sizes | {"num_key_value_heads": 4}, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def write_model(family: str, directory: Path, **changes: Any) -> Path:
    """Write the family's tiny model with seeded random weights (biases and norms too) into `directory`.

    `changes` are those of `family_config`.
    """
    torch.manual_seed(sum(map(ord, family)))
    model = AutoModelForCausalLM.from_config(family_config(family, **changes), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    return directory
