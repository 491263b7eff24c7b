"""Functions that create an adapter's directory, for tables of cases; each takes the forms and the directory's name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from support.adapter_forms import FILE, MODULES, AdapterForms
from transformers import AutoModelForCausalLM
from wild.adapters import CONFIG, Change

Maker = Callable[[AdapterForms, str], Path]


def quietly(make: Maker) -> Maker:
    """`make` without PEFT's warnings, since PEFT warns about some of these forms."""

    def silent(forms: AdapterForms, name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(forms, name)

    return silent


def changed(change: Change = lambda tensors: tensors, **fields: Any) -> Maker:
    """The plain adapter with other tensors and config fields."""
    return lambda forms, name: forms.changed(change, name, **fields)


def bare_config(**fields: Any) -> Maker:
    """The plain adapter with a config of these fields only."""
    return with_files({CONFIG: json.dumps(fields).encode()})


def with_files(files: Mapping[str, bytes]) -> Maker:
    """The plain adapter with additional or changed files."""

    def make(forms: AdapterForms, name: str) -> Path:
        directory = forms.changed(lambda tensors: tensors, name)
        for file, content in files.items():
            (directory / file).write_bytes(content)
        return directory

    return make


def files_instead(files: Mapping[str, bytes], *, keep_config: bool = False) -> Maker:
    """A directory of these files, without the plain adapter's weights."""

    def make(forms: AdapterForms, name: str) -> Path:
        directory = with_files(files)(forms, name)
        (directory / FILE).unlink()
        if not keep_config:
            (directory / CONFIG).unlink()
        return directory

    return make


def saved(**options: Any) -> Maker:
    """The adapter that PEFT saves for a LoraConfig with these options."""
    return quietly(lambda forms, name: forms.save(name, **options))


def converted(init: str) -> Maker:
    """An adapter that was initialised with `init`, trained, and converted to plain LoRA by PEFT."""

    @quietly
    def make(forms: AdapterForms, name: str) -> Path:
        base = AutoModelForCausalLM.from_pretrained(forms.model)
        config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, init_lora_weights=init)
        model = peft.get_peft_model(base, config)
        model.peft_config["default"].init_lora_weights = True
        initial = forms.model.parent / f"{init}-initial"
        model.save_pretrained(str(initial))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter += 0.2 * torch.randn_like(parameter)
        model.peft_config["default"].init_lora_weights = init
        model.save_pretrained(str(forms.place / name), path_initial_model_for_weight_conversion=str(initial))
        return forms.place / name

    return make


def other_method(kind: str) -> Maker:
    """An adapter of another method of PEFT's, as PEFT saves it."""
    targets: dict[str, Any] = {"target_modules": MODULES}
    configs: dict[str, Callable[[], peft.PeftConfig]] = {
        "IA3": lambda: peft.IA3Config(**targets, feedforward_modules=["down_proj"]),
        "LOHA": lambda: peft.LoHaConfig(**targets),
        "VERA": lambda: peft.VeraConfig(target_modules=["q_proj"]),
        "ADALORA": lambda: peft.AdaLoraConfig(**targets, total_step=10),
        "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }

    @quietly
    def make(forms: AdapterForms, name: str) -> Path:
        base = AutoModelForCausalLM.from_pretrained(forms.model)
        peft.get_peft_model(base, configs[kind]()).save_pretrained(str(forms.place / name))
        return forms.place / name

    return make


def whole_state(forms: AdapterForms, name: str) -> Path:
    """The state dict of the whole PEFT model in the adapter's file."""
    directory = with_files({})(forms, name)
    base = AutoModelForCausalLM.from_pretrained(forms.model)
    model = peft.PeftModel.from_pretrained(base, str(forms.plain))
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, directory / FILE)
    return directory
