"""Error messages for tensors that do not belong to a LoRA pair of this model: what the tensor is and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection

from motet.engine.adapters.unsupported_features import UNSUPPORTED_TENSORS
from motet.engine.models.architectures import ModelConfig

_PAIR = re.compile(r"layers\.(?P<layer>\d{1,6})\.(?P<module>\w+\.\w+)\..*?lora_(?P<side>[AB])\b", re.ASCII)
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that torch.compile and FSDP insert."""

_FUSED = {
    "qkv_proj": "q_proj, k_proj and v_proj",
    "gate_up_proj": "gate_proj and up_proj",
    "query_key_value": "q_proj, k_proj and v_proj",
    "W_pack": "q_proj, k_proj and v_proj",
    "c_attn": "q_proj, k_proj and v_proj",
}


def shown(name: str) -> str:
    """A name from an adapter file, shortened for an error."""
    return name if len(name) <= 200 else f"{name[:200]}…"


def explain_tensor(name: str, model: ModelConfig, modules: Collection[str]) -> str:
    """What the tensor `name` is, and what to do; `modules` are those of a layer, such as `self_attn.q_proj`."""
    for pattern, reason in UNSUPPORTED_TENSORS:
        if re.search(pattern, name):
            return reason
    if (match := _PAIR.search(_WRAPPERS.sub("", name))) is not None:
        return _pair_advice(name, match, model, modules)
    if "lora" not in name.lower():
        return (
            "it is a weight of a whole model, not of a LoRA adapter; save the adapter alone with PEFT's save_pretrained"
        )
    return _another_base(model)


def _pair_advice(name: str, match: re.Match[str], model: ModelConfig, modules: Collection[str]) -> str:
    layer, module = match["layer"], match["module"]
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
    name_here = f"base_model.model.model.layers.{layer}.{module}.lora_{match['side']}.weight"
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
