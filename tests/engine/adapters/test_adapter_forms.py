"""Adapters as other tools write them: accepted forms have PEFT's deltas, refused ones after following the advice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapter_forms import FILE, MODULES, AdapterForms, assert_same
from support.tiny_adapters import Tensors
from transformers import AutoModel, AutoModelForCausalLM

from motet.core.errors import AdapterRefused


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> AdapterForms:
    return AdapterForms(tmp_path_factory.mktemp("forms"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AutoModelForCausalLM, {"bias": "lora_only"}),
        (AutoModelForCausalLM, {"bias": "all"}),
        (AutoModelForCausalLM, {"save_embedding_layers": True}),
        (AutoModel, {"task_type": "FEATURE_EXTRACTION"}),
        (AutoModel, {"task_type": "FEATURE_EXTRACTION", "save_embedding_layers": True}),
        (AutoModel, {"rank_pattern": {r"^layers\.1\..*q_proj": 3}, "alpha_pattern": {r"layers\.2\..*": 5}}),
    ],
)
def test_forms_that_peft_saves(forms: AdapterForms, kind: Any, options: dict[str, Any]) -> None:
    """Qwen2 has biases, which PEFT saves with `bias`, though LoRA's training did not change them here."""
    directory = forms.save("form", kind, **options)
    try:
        names = set(load_file(directory / FILE))
        if "bias" in options or "save_embedding_layers" in options:
            assert any("lora_" not in name for name in names), "the form has more than LoRA's tensors"
        assert_same(forms.of_motet(directory), forms.of_peft(kind, directory))
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": None},
        {"use_rslora": None},
        {"target_modules": MODULES * 2},
        {"bias": None},
        {"base_model_name_or_path": "/another/machine/model"},
    ],
)
def test_configs_that_peft_reads_as_the_same(forms: AdapterForms, fields: dict[str, Any]) -> None:
    assert_same(forms.of_motet(forms.changed(lambda tensors: tensors, **fields)), forms.deltas)


def renamed(pattern: str, replacement: str) -> Callable[[Tensors], Tensors]:
    """The tensors under other names."""
    return lambda tensors: {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


NAMES = {
    "named adapter": renamed(r"\.weight$", ".default.weight"),
    "bare": renamed(r"^base_model\.model\.", ""),
    "without model": renamed(r"^base_model\.model\.model\.", ""),
    "torch.compile": renamed(r"^base_model\.model\.", "base_model.model._orig_mod."),
    "torch.compile inside": renamed(r"self_attn\.", "self_attn._orig_mod."),
    "FSDP": renamed(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module."),
    "thinker": renamed(r"^base_model\.model\.", "base_model.model.thinker."),
    "nested": renamed(r"^", "base_model.model."),
    "multimodal": renamed(r"^base_model\.model\.model\.", "base_model.model.model.language_model."),
}


@pytest.mark.parametrize("form", NAMES)
def test_following_the_advice_on_names(forms: AdapterForms, form: str) -> None:
    """Rename what each message says, one by one, as a person would with a script."""
    directory = forms.changed(NAMES[form])
    tensors = load_file(directory / FILE)
    for _ in tensors.keys() - load_file(forms.plain / FILE).keys():
        with pytest.raises(AdapterRefused) as caught:
            forms.of_motet(directory)
        found = re.search(r"^tensor (\S+) matches no .* rename (?:it|the tensor) to (\S+)$", caught.value.message)
        assert found is not None, caught.value.message
        tensors[found[2]] = tensors.pop(found[1])
        save_file(tensors, directory / FILE)
    assert_same(forms.of_motet(directory), forms.deltas)


def test_following_the_advice_on_mlx(forms: AdapterForms) -> None:
    def to_mlx(tensors: Tensors) -> Tensors:
        return {
            n.removeprefix("base_model.model.")
            .replace(".weight", "")
            .replace("lora_A", "lora_a")
            .replace("lora_B", "lora_b"): t.T
            for n, t in tensors.items()
        }

    directory = forms.changed(to_mlx)
    with pytest.raises(AdapterRefused, match=r"MLX's format.*transpose lora_a and lora_b.*lora_alpha to rank times"):
        forms.of_motet(directory)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 1.5}}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterRefused, match="MLX's, not PEFT's; convert it"):
        forms.of_motet(directory)
    rewritten = {
        f"base_model.model.{n[:-1]}{n[-1].upper()}.weight": t.T.contiguous()
        for n, t in load_file(directory / FILE).items()
    }
    save_file(rewritten, directory / FILE)
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 4 * 1.5, "target_modules": MODULES}
    (directory / "adapter_config.json").write_text(json.dumps(peft))
    assert_same(forms.of_motet(directory), forms.deltas)


def test_following_the_advice_on_fused_projections(forms: AdapterForms) -> None:
    """A fused projection's delta is its parts' deltas, one below the other."""
    prefix = "base_model.model.model.layers.0.self_attn"
    a, b = torch.randn(4, 96), torch.randn(192, 4)

    def fused(_: Tensors) -> Tensors:
        return {f"{prefix}.qkv_proj.lora_A.weight": a, f"{prefix}.qkv_proj.lora_B.weight": b}

    with pytest.raises(AdapterRefused, match=r"qkv_proj is a fused projection.*copy of lora_A and its own rows"):
        forms.of_motet(forms.changed(fused, target_modules=["qkv_proj"]))

    def separate(_: Tensors) -> Tensors:
        parts = zip(("q_proj", "k_proj", "v_proj"), b.split([96, 48, 48]), strict=True)
        return {
            f"{prefix}.{name}.lora_{side}.weight": t.clone()
            for name, rows in parts
            for side, t in (("A", a), ("B", rows))
        }

    ours = forms.of_motet(forms.changed(separate, target_modules=["q_proj", "k_proj", "v_proj"]))
    whole = torch.cat([ours[f"0.self_attn.{name}"] for name in ("q_proj", "k_proj", "v_proj")])
    torch.testing.assert_close(whole, 1.5 * b @ a, rtol=1e-4, atol=1e-4)
