"""ModelConfig, and the table of architectures that makes it from a transformers config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from motet.core.errors import StartupError
from motet.engine.distributed.shard_counts import SplitSizes
from motet.engine.kernels.quantized_weight import Quantization
from motet.engine.layers.rotary import inverse_frequencies
from motet.engine.models.config_cache import cached_record
from motet.engine.models.quantization import stored_quantization


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama family; the architectures differ in the named flags.

    `window[i]` is layer i's sliding window in tokens (0: none); with `rotates[i]`, layer i applies RoPE.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_context: int
    tied_embeddings: bool
    inverse_frequencies: torch.Tensor
    rope_scale: float
    window: tuple[int, ...]
    rotates: tuple[bool, ...]
    dtype: torch.dtype
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    stored_quantization: Quantization = "none"

    def check_shards(self, shards: int) -> None:
        """Raise StartupError if `shards` ranks cannot split this model evenly."""
        sizes = SplitSizes(self.num_heads, self.num_kv_heads, self.intermediate_size)
        if obstacle := sizes.obstacle(shards):
            possible = ", ".join(map(str, sizes.possible()))
            raise StartupError(f"--shards {shards} {obstacle}; possible values: {possible}", param="shards")

    def kv_heads_per_rank(self, shards: int) -> int:
        """The key-value heads of each of `shards` ranks: at least one, which several ranks may have."""
        return max(1, self.num_kv_heads // shards)


def _windows(config: Any) -> tuple[int, ...]:
    """Each layer's sliding window, from `layer_types` if the config has them."""
    window: int = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True):
        window = 0
    if kinds is None:
        return tuple([window] * int(config.num_hidden_layers))
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise StartupError(f"the model's config.json has unsupported layer_types: {', '.join(sorted(unknown))}")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _llama(config: Any) -> dict[str, Any]:
    bias = bool(getattr(config, "attention_bias", False))
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": bool(getattr(config, "mlp_bias", False))}


def _mistral(config: Any) -> dict[str, Any]:
    return {}


def _qwen2(config: Any) -> dict[str, Any]:
    return {"qkv_bias": True}


def _qwen3(config: Any) -> dict[str, Any]:
    bias = bool(config.attention_bias)
    return {"qkv_bias": bias, "output_bias": bias, "qk_norm": True}


def _smollm3(config: Any) -> dict[str, Any]:
    return {**_llama(config), "rotates": tuple(bool(r) for r in config.no_rope_layers)}


ARCHITECTURES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,  # SmolLM and SmolLM2 too
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "SmolLM3ForCausalLM": _smollm3,
}


def from_transformers(config: Any) -> ModelConfig:
    """The ModelConfig of a transformers config. Raises StartupError if the results could differ from transformers."""
    architecture = (config.architectures or ["?"])[0]
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise StartupError(
            f"the model's architecture {architecture} is not supported; supported: {known}", param="model"
        )
    if config.hidden_act != "silu":
        raise StartupError(f"the model's hidden_act {config.hidden_act!r} is not supported", param="model")
    heads = config.num_attention_heads
    frequencies, scale = inverse_frequencies(config)
    eos = config.eos_token_id
    layers = config.num_hidden_layers
    record: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": config.num_key_value_heads or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "norm_eps": config.rms_norm_eps,
        "max_context": config.max_position_embeddings,
        "tied_embeddings": bool(config.tie_word_embeddings),
        "inverse_frequencies": frequencies,
        "rope_scale": scale,
        "window": _windows(config),
        "rotates": (True,) * layers,
        "dtype": config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32,
        "stored_quantization": stored_quantization(getattr(config, "quantization_config", None)),
        "eos_token_ids": () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
    }
    return ModelConfig(**(record | ARCHITECTURES[architecture](config)))


def read_config(directory: Path) -> ModelConfig:
    """The ModelConfig of `directory`'s config.json. Raises StartupError if that is missing or not supported.

    It is cached on disk, since importing transformers takes longer than all other work before the weights are loaded.
    """
    try:
        content = (directory / "config.json").read_bytes()
    except FileNotFoundError:
        message = f"{directory} has no config.json; --model takes a transformers directory"
        raise StartupError(message, param="model") from None
    except OSError as error:
        raise StartupError(f"{directory}/config.json cannot be read: {error}", param="model") from error
    return cached_record(content, ModelConfig, lambda: _read_with_transformers(directory))


def _read_with_transformers(directory: Path) -> ModelConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise StartupError(f"{directory}/config.json cannot be read: {error}", param="model") from error
    return from_transformers(config)
