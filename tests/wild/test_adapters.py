"""Adapters as people publish them: one case per public report, with the expected result.

A served adapter has the tokens and logprobs of PEFT; an error names the field or tensor and what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from support.adapter_forms import MODULES
from wild.adapters import MAX_RANK, AdapterServer, added, cast, renamed
from wild.makers import (
    Maker,
    bare_config,
    changed,
    converted,
    files_instead,
    other_method,
    saved,
    whole_state,
    with_files,
)

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
UNREPORTED = "tried without a report"
HEAD = ["embed_tokens", "lm_head"]
UNSLOTH_REGEX = (
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj|down_proj)))"
)


@dataclass(frozen=True)
class Served:
    """An adapter that is served as PEFT computes it; `as_plain` if PEFT cannot read this form of the plain adapter."""

    reports: str
    make: Maker
    as_plain: bool = False


@dataclass(frozen=True)
class Refused:
    """An adapter that is refused with a message that matches this regex."""

    reports: str
    make: Maker
    words: str
    status: int = 422


SERVED = {
    "unsloth": Served(
        "sglang#374",
        changed(
            base_model_name_or_path="unsloth/tiny-bnb-4bit",
            revision="unsloth",
            auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        ),
    ),
    "targets-twice": Served("a public repository", changed(target_modules=MODULES * 2)),
    "alpaca-lora": Served("PEFT 0.2", changed(enable_lora=None, merge_weights=False)),
    "torchtune": Served("torchtune", bare_config(peft_type="LORA", r=4, lora_alpha=6, target_modules=MODULES)),
    "newer-fields": Served(
        "textgen#6819, peft#2275, ms-swift#3141, unsloth#3888",
        changed(
            eva_config=None,
            corda_config=None,
            trainable_token_indices=None,
            ensure_weight_tying=False,
            a_field_of_next_year=None,
        ),
    ),
    "ms-swift-side-file": Served(
        "ms-swift", with_files({"additional_config.json": b'{"lora_dtype": null, "lorap_emb_lr": 1e-6}'})
    ),
    "regex-targets": Served(
        "vllm PR 9275, verl PR 7288, ms-swift", saved(target_modules=r"^(model\.layers.*\.(q_proj|v_proj|down_proj))$")
    ),
    "unsloth-regex": Served("Unsloth", saved(target_modules=UNSLOTH_REGEX)),
    "all-linear": Served("verl PR 7288", saved(target_modules="all-linear")),
    "dotted-targets": Served("sglang#11034", saved(target_modules=["mlp.gate_proj", "self_attn.q_proj"])),
    "targets-without-tensors": Served(
        "mergekit#521, a public repository", changed(target_modules=[*MODULES, "lm_head", "linear_fc2"])
    ),
    "float-alpha": Served("ollama PR 17377", saved(lora_alpha=16.5)),
    "bias-null": Served("peft#946", changed(bias=None), as_plain=True),
    "bf16": Served(UNREPORTED, changed(cast(torch.bfloat16))),
    "fp16": Served(UNREPORTED, changed(cast(torch.float16))),
    "fp64": Served(UNREPORTED, changed(cast(torch.float64))),
    "fp8": Served(UNREPORTED, changed(cast(torch.float8_e4m3fn))),
    "ranks-by-layer": Served(
        UNREPORTED, saved(rank_pattern={rf"layers\.{i}\..*": rank for i, rank in enumerate((1, 3, 17, 200))})
    ),
    "rank-512": Served(UNREPORTED, saved(r=MAX_RANK, lora_alpha=64)),
    "layers-to-transform": Served(
        "axolotl PR 1118, peft#2155", saved(layers_to_transform=[1, 3], layers_pattern="layers")
    ),
    "pissa-converted": Served("LLaMA-Factory, ludwig PR 4146", converted("pissa")),
    "olora-converted": Served("LLaMA-Factory, ludwig PR 4146", converted("olora")),
    "bias-all-without-biases": Served("vllm PR 5733", saved(bias="all")),
    "bias-lora-only-without-biases": Served("vllm PR 5733", saved(bias="lora_only")),
    "embeddings-saved-unchanged": Served("trl#1287, Olive PR 1027", saved(save_embedding_layers=True)),
    "init-null": Served(UNREPORTED, changed(init_lora_weights=None)),
    "rslora-null": Served(UNREPORTED, changed(use_rslora=None)),
}


@pytest.mark.parametrize("row", SERVED)
def test_served_as_peft_does(adapter_server: AdapterServer, row: str) -> None:
    case = SERVED[row]
    directory = case.make(adapter_server.forms, row)
    adapter_server.assert_served(f"local:{row}", adapter_server.forms.plain if case.as_plain else directory)


ONE = torch.zeros(1, 1)
REFUSED = {
    "pissa-unconverted": Refused(
        "LLaMA-Factory, ludwig PR 4146",
        saved(init_lora_weights="pissa"),
        r"init_lora_weights = 'pissa' alters the base weights; convert .*path_initial_model_for_weight_conversion",
    ),
    "head-and-embedding-trained": Refused(
        "vllm#9280, LlamaFactory#9545 #7997",
        saved(modules_to_save=HEAD),
        r"modules_to_save = .*trained embeddings and heads are not supported yet; train without them",
    ),
    "lora-on-the-head": Refused(
        "vllm#32599 #4186, llama.cpp#3651 #5602, peft#2092",
        saved(target_modules=[*MODULES, "lm_head"], save_embedding_layers=True),
        r"lm_head\.lora_A\.weight .*LoRA on the head \(lm_head\) is not supported yet; train without it",
    ),
    "embedding-saved-trained": Refused(
        "trl#1287, llama.cpp#11554 PR 9948, unsloth#237 #978",
        changed(added(base_model__model__model__embed_tokens__weight=torch.zeros(259, 96))),
        r"embed_tokens\.weight is not a copy of the base's .*trained embeddings.* not supported yet; train LoRA alone",
    ),
    "embedding-and-head-lora": Refused(
        "mergekit#459 #328 (yard1/llama-2-7b-sql-lora-test)",
        saved(target_modules=[*MODULES, *HEAD]),
        r"(lm_head|embed_tokens)\.lora_.* not supported yet; train without it",
    ),
    "unembed-tokens": Refused(
        "tinker-cookbook#193",
        changed(added(base_model__model__model__unembed_tokens__lora_A__weight=ONE)),
        r"unembed_tokens\.lora_A.*LoRA on the head .*not supported yet",
    ),
    "trainable-tokens": Refused(
        "peft#2898", saved(trainable_token_indices=[5, 6]), "trainable_token_indices = .*not supported"
    ),
    "dora": Refused("vllm#6983 #8945", saved(use_dora=True), "use_dora = True: DoRA is not supported"),
    "lora-bias": Refused("vllm PR 5733", saved(lora_bias=True), "lora_bias = True: biases in lora_B"),
    "trained-bias": Refused(
        "vllm PR 5733",
        changed(added(base_model__model__model__norm__bias=torch.ones(96)), bias="all"),
        r"norm\.bias .*trained biases are not supported; train with bias='none'",
    ),
    "classifier": Refused(
        "vllm#7441",
        changed(added(base_model__model__score__weight=torch.ones(2, 96)), task_type="SEQ_CLS"),
        r"score\.weight .*a classifier's head, and Motet serves text generation and embeddings only",
    ),
    "classifier-config": Refused(
        "vllm#7441",
        changed(task_type="SEQ_CLS", modules_to_save=["classifier", "score"]),
        "modules_to_save = .*the adapter is a classifier",
    ),
    "language-model": Refused(
        "vllm#34186 #48019 PR 39278",
        changed(renamed(r"model\.layers", "model.language_model.layers")),
        r"a multimodal model, as `language_model` says; .*rename the tensor to base_model\.model\.model\.layers",
    ),
    "default-adapter-name": Refused(
        "AReaL PR 1579",
        changed(renamed(r"\.weight$", ".default.weight")),
        r"\.default\.weight .*a name that PEFT does not read; rename it to base_model\.model\.model\.layers\S+$",
    ),
    "bare-names": Refused(
        "Relax PR 262",
        changed(renamed(r"^base_model\.model\.", "")),
        r"tensor model\.layers.*rename it to base_model\.model\.model\.layers",
    ),
    "torch-compile": Refused(
        "Soup#335",
        changed(renamed(r"^base_model\.model\.", "base_model.model._orig_mod.")),
        r"_orig_mod.*rename it to base_model\.model\.model\.layers",
    ),
    "thinker": Refused(
        "NeMo Automodel PR 3630",
        changed(renamed(r"^base_model\.model\.", "base_model.model.thinker.")),
        r"thinker.*rename it to base_model\.model\.model\.layers",
    ),
    "fused-projections": Refused(
        "vllm#4715 #4915",
        changed(
            lambda _: {f"{Q0[:-6]}qkv_proj.lora_{s}.weight": torch.zeros(1, 1) for s in "AB"},
            target_modules=["qkv_proj", "gate_up_proj"],
        ),
        "qkv_proj is a fused projection, and this model has q_proj, k_proj and v_proj; give each",
    ),
    "mlx-config": Refused(
        "mlx-lm#1119, llama.cpp#10551",
        bare_config(fine_tune_type="lora", lora_parameters={"rank": 4, "scale": 1.5, "dropout": 0.0}),
        r"adapter_config\.json is MLX's, not PEFT's; convert it",
    ),
    "mlx-files": Refused(
        "mlx-lm#1119",
        files_instead({"adapters.safetensors": b"x"}, keep_config=True),
        r"no adapter_model\.safetensors, but MLX's adapters file; convert it",
    ),
    "mistral-finetune": Refused(
        "lorax#546",
        files_instead({"lora.safetensors": b"x", "params.json": b"{}"}),
        r"'mistral-finetune' has no adapter_config\.json; lora\.safetensors is in the format of mistral-finetune",
        404,
    ),
    "zero-3-empty": Refused(
        "trl#4416, peft#1710, LlamaFactory#446",
        changed(lambda tensors: {name: t[:0].flatten() for name, t in tensors.items()}),
        r"saved empty, with shape \[0\]; DeepSpeed ZeRO-3 .*stage3_gather_16bit_weights_on_model_save",
    ),
    "git-lfs": Refused(
        "MFTCoder#20, Lora-for-Diffusers#3",
        with_files({"adapter_model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}),
        "a git-lfs pointer, not the file itself; run: git lfs pull",
    ),
    "whole-state-dict": Refused(
        "peft#1025", whole_state, "a weight of a whole model, not of a LoRA adapter; save the adapter alone with PEFT"
    ),
    **{
        f"method-{name}": Refused(UNREPORTED, other_method(name), f"peft_type is '{name}'; only LORA is supported")
        for name in ("IA3", "LOHA", "VERA", "ADALORA", "PROMPT_TUNING")
    },
    "alora": Refused(
        UNREPORTED, saved(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens = .*aLoRA is not supported"
    ),
    "qa-lora": Refused(UNREPORTED, changed(use_qalora=True), "use_qalora = True: QA-LoRA is not supported"),
    "target-parameters": Refused(
        UNREPORTED, changed(target_parameters=["mlp.experts.gate_up_proj"]), "target_parameters = .*not supported"
    ),
    "int8": Refused(UNREPORTED, changed(cast(torch.int8)), r"tensor base_model\S+ is int8; it must be floating point"),
    "rank-0": Refused(UNREPORTED, changed(r=0), "r is 0; it must be a whole number from 1"),
    "alpha-null": Refused(UNREPORTED, changed(lora_alpha=None), "lora_alpha is None; it must be a number"),
    "pickled": Refused(
        UNREPORTED,
        files_instead({"adapter_model.bin": b"\x80"}, keep_config=True),
        r"adapter_model\.bin is not supported, since unpickling runs code: save with safetensors",
    ),
    "shards": Refused(
        UNREPORTED,
        files_instead({f"adapter_model-0000{i}-of-00002.safetensors": b"x" for i in (1, 2)}, keep_config=True),
        r"split over 2 files .*join them into one adapter_model\.safetensors",
    ),
    "gguf": Refused(
        UNREPORTED,
        files_instead({"lora.gguf": b"GGUF"}),
        r"'gguf' has no adapter_config\.json, but lora\.gguf; GGUF",
        404,
    ),
    "head-over-the-size-limit": Refused(
        UNREPORTED,
        changed(added(base_model__model__lm_head__lora_A__weight=torch.zeros(1 << 23))),
        r"lm_head\.lora_A\.weight .*LoRA on the head \(lm_head\) is not supported yet",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused_with_the_cause_and_what_to_do(adapter_server: AdapterServer, row: str) -> None:
    case = REFUSED[row]
    case.make(adapter_server.forms, row)
    message = adapter_server.refusal(f"local:{row}", case.status)
    assert re.search(case.words, message, re.DOTALL), message
    assert adapter_server.refusal(f"local:{row}", case.status) == message, "the same file, the same message"
