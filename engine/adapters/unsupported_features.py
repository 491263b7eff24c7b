"""The features of adapters that are refused, such as DoRA: by their fields in adapter_config.json and by their tensors.

A wrong result without an error is the worst fault of an adapter server. So whatever changes the result is either
computed as in PEFT or refused with its name, and unknown fields must be empty.
"""

from __future__ import annotations

from typing import Any

from motet.core.errors import AdapterRefused

NEUTRAL = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "inference_mode",
        "layers_pattern",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    ]
)
"""Fields that do not change what a trained adapter computes, or that peft_config.py reads (peft_type)."""

SUPPORTED = frozenset(
    [
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    ]
)

UNSUPPORTED = {
    "alora_invocation_tokens": "aLoRA is not supported",
    "arrow_config": "Arrow routing is not supported",
    "corda_config": "",
    "eva_config": "",
    "kasa_config": "KaSA is not supported",
    "layer_replication": "layer replication changes the base model",
    "loftq_config": "",
    "lora_bias": "biases in lora_B are not supported",
    "lora_ga_config": "",
    "modules_to_save": "fully trained modules are not supported; train without modules_to_save",
    "monteclora_config": "MonteCLoRA is not supported",
    "target_parameters": "LoRA on bare parameters is not supported",
    "trainable_token_indices": "trained token embeddings are not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "use_dora": "DoRA is not supported",
    "use_qalora": "QA-LoRA is not supported",
    "velora_config": "VeLoRA is not supported",
}
"""Fields that must be empty, with the reason; one without a reason describes the initialisation and is accepted."""

CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")

BIASES = ("none", "all", "lora_only")
"""Values of `bias`. Many models have no biases, so a trained bias is refused by its tensor, not here."""

PLAIN_INITS = (True, False, None, "true", "false", "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights`. Others change the base weights, so the adapter does not fit the served base."""

UNSUPPORTED_TENSORS = [
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
"""Patterns of the names of tensors that are refused, with the reason for the error message."""


def check_config_fields(raw: dict[str, Any]) -> None:
    """Raise AdapterRefused for the first field of adapter_config.json that is unsupported, unknown or invalid."""
    for name, value in raw.items():
        if name in NEUTRAL or name in SUPPORTED or not value:
            continue
        reason = UNSUPPORTED.get(name, "the field is unknown, and may change what the adapter computes")
        if name == "modules_to_save":
            reason = _saved_modules_reason(value, raw.get("task_type"))
        if reason:
            raise AdapterRefused(f"adapter_config.json: {name} = {value!r}"[:300] + f": {reason}", param=name)
    if (bias := raw.get("bias")) and bias not in BIASES:
        raise AdapterRefused(
            f"adapter_config.json: bias = {bias!r}"[:300] + f": it must be one of {', '.join(BIASES)}", param="bias"
        )
    init = raw.get("init_lora_weights")
    if init not in PLAIN_INITS:
        raise AdapterRefused(
            f"adapter_config.json: init_lora_weights = {init!r} alters the base weights; convert the adapter to a "
            "plain LoRA (PEFT: save_pretrained(path_initial_model_for_weight_conversion=…))",
            param="init_lora_weights",
        )


def _saved_modules_reason(modules: Any, task: Any) -> str:
    """The reason to refuse fully trained modules, and what to do."""
    names = {str(name).split(".")[-1] for name in modules} if isinstance(modules, list) else set()
    if task in CLASSIFIERS or names & {"score", "classifier"}:
        return "the adapter is a classifier, whose head is trained; Motet serves text generation and embeddings only"
    if names & {"embed_tokens", "lm_head"}:
        return "trained embeddings and heads are not supported yet; train without them in modules_to_save"
    return UNSUPPORTED["modules_to_save"]
