"""The fused linear layers of a decoder layer: `qkv`, `o`, `gate_up` and `down`, with their modules and sizes.

The decoder, the adapter pools and the adapter loader refer to the linear layers by these names.
"""

from __future__ import annotations

from motet.engine.distributed.process_group import ShardGroup
from motet.engine.layers.linear import LinearSpec, Part
from motet.engine.lora.pool import ModuleShape
from motet.engine.models.architectures import ModelConfig


def linear_specs(config: ModelConfig) -> dict[str, LinearSpec]:
    """The fused linear layers of every decoder layer, by name."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    q = Part("q_proj", heads)
    k, v = (Part(name, kv_heads, config.num_kv_heads) for name in ("k_proj", "v_proj"))
    gate, up = Part("gate_proj", inner), Part("up_proj", inner)
    return {
        "qkv": LinearSpec("self_attn", (q, k, v), hidden, "column", config.qkv_bias),
        "o": LinearSpec("self_attn", (Part("o_proj", hidden),), heads, "row", config.output_bias),
        "gate_up": LinearSpec("mlp", (gate, up), hidden, "column", config.mlp_bias),
        "down": LinearSpec("mlp", (Part("down_proj", hidden),), inner, "row", config.mlp_bias),
    }


def module_shapes(config: ModelConfig, group: ShardGroup) -> dict[str, tuple[ModuleShape, ...]]:
    """The modules of each fused linear layer, with the sizes of this rank's shard."""
    return {name: spec.shapes(group) for name, spec in linear_specs(config).items()}
