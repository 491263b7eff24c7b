"""Says of a tensor that is no LoRA pair here what it is and what to do; for people, so every form has its own line."""

from __future__ import annotations

import re
from collections.abc import Collection

from motet.engine.models.config import ModelConfig

_PAIR = re.compile(r"layers\.(?P<layer>\d{1,6})\.(?P<module>\w+\.\w+)\..*?lora_(?P<side>[AB])\b", re.ASCII)
_UNSUPPORTED = [
    (r"lora_embedding_|\b(embed_tokens|wte)\.lora_", "LoRA on the embedding is not supported yet; train without it"),
    (r"(lm_head|embed_out|unembed_tokens)\.lora_", "LoRA on the head (lm_head) is not supported yet; train without it"),
    (
        r"embed_tokens|lm_head|wte\.|embed_out|unembed_tokens",
        "trained embeddings and heads are not supported yet; train without them in modules_to_save",
    ),
    (r"lora_magnitude_vector", "DoRA is not supported yet; train with use_dora=False"),
    (r"trainable_tokens|token_adapter", "trained token embeddings are not supported yet"),
    (r"\b(score|classifier)\.", "it is a classifier's head, and Motet serves text generation and embeddings only"),
    (r"modules_to_save", "fully trained modules are not supported; train without modules_to_save"),
    (r"lora_[AB]\.(\w+\.)?bias$", "biases in LoRA are not supported; train with lora_bias=False"),
    (r"\.bias$", "trained biases are not supported; train with bias='none'"),
    (
        r"\.lora_[ab]$",
        "this is MLX's format, not PEFT's; transpose lora_a and lora_b, save them as base_model.model.<module>."
        "lora_A.weight and .lora_B.weight, and set r to the rank and lora_alpha to rank times scale in "
        "adapter_config.json",
    ),
    (
        r"layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.",
        "this is mistral-finetune's format, not PEFT's; it uses Mistral's own names and order of rows, so train or "
        "convert with PEFT",
    ),
    (r"\.(experts|block_sparse_moe)\.", "it is for a mixture of experts, which this model is not"),
    (r"lora_(up|down)\.|^lora_(unet|te)", "this is a format for image models, not PEFT's"),
]
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile and FSDP put into names."""

_FUSED = {
    "qkv_proj": "q_proj, k_proj and v_proj",
    "gate_up_proj": "gate_proj and up_proj",
    "query_key_value": "q_proj, k_proj and v_proj",
    "W_pack": "q_proj, k_proj and v_proj",
    "c_attn": "q_proj, k_proj and v_proj",
}


def shown(name: str) -> str:
    """A foreign name as an error can carry it."""
    return name if len(name) <= 200 else f"{name[:200]}…"


def advice(name: str, model: ModelConfig, modules: Collection[str]) -> str:
    """What the tensor `name` is, and what to do; `modules` are a layer's, such as `self_attn.q_proj`."""
    for pattern, reason in _UNSUPPORTED:
        if re.search(pattern, name):
            return reason
    if (found := _PAIR.search(_WRAPPERS.sub("", name))) is not None:
        return _pair_advice(name, found, model, modules)
    if "lora" not in name.lower():
        return (
            "it is a weight of a whole model, not of a LoRA adapter; save the adapter alone with PEFT's save_pretrained"
        )
    return _another_base(model)


def _pair_advice(name: str, found: re.Match[str], model: ModelConfig, modules: Collection[str]) -> str:
    layer, module = found["layer"], found["module"]
    kind = module.split(".")[-1]
    if kind in _FUSED:
        return (
            f"{kind} is a fused projection, and this model has {_FUSED[kind]}; give each of them a copy of lora_A and "
            "its own rows of lora_B, or train on a base with separate projections"
        )
    if module not in modules or str(int(layer)) != layer:
        return _another_base(model)
    if int(layer) >= model.num_layers:
        return f"layer {layer} is beyond this model's {model.num_layers} layers; the adapter is for another base model"
    name_here = f"base_model.model.model.layers.{layer}.{module}.lora_{found['side']}.weight"
    if "language_model" in name:
        return (
            "it was trained on a multimodal model, as `language_model` says; if its text model is this base, rename "
            f"the tensor to {name_here}"
        )
    return (
        f"it is a LoRA tensor for model.layers.{layer}.{module} under a name that PEFT does not read; rename it to "
        f"{name_here}"
    )


def _another_base(model: ModelConfig) -> str:
    return f"it may be for another base model (this one is {model.architecture}, {model.num_layers} layers)"
