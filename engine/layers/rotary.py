"""Rotary position embeddings (RoPE; Su et al., "RoFormer", 2021), with the frequencies that transformers computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from motet.core.errors import StartupError

# Other variants' frequencies depend on the sequence's length, so one table cannot have them.
_STATIC = ("linear", "llama3", "yarn")


def inverse_frequencies(config: Any) -> tuple[Tensor, float]:
    """Inverse frequencies [head_dim / 2] (fp32) and the factor on cos and sin for a transformers config.

    Raises StartupError for a variant whose results could differ from transformers.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters or {}
    kind = parameters.get("rope_type", "default")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise StartupError("the model rotates only part of each head, which is not supported", param="model")
    if kind == "default":
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 1.0 / (parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0
    if kind not in _STATIC:
        raise StartupError(
            f"the model's rope_type {kind!r} is not supported; supported: default, " + ", ".join(_STATIC),
            param="model",
        )
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies.float(), float(scale)


class RotaryTable:
    """cos and sin [max_context, head_dim / 2] (fp32) for every position."""

    def __init__(self, frequencies: Tensor, scale: float, max_context: int, device: torch.device) -> None:
        angles = torch.arange(max_context, dtype=torch.float)[:, None] * frequencies[None, :]
        self.cos = (angles.cos() * scale).contiguous().to(device)
        self.sin = (angles.sin() * scale).contiguous().to(device)
