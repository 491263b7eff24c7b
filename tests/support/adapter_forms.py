"""Adapters of one tiny base model in the formats of other tools, and their weight deltas in Motet and in PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.tiny_adapters import Tensors
from support.tiny_models import write_model
from transformers import AutoModelForCausalLM

from motet.core.messages import AdapterPart
from motet.engine.adapters.prepare import Target, prepare_adapter
from motet.engine.models.architectures import read_config

MODULES = ["q_proj", "v_proj", "down_proj"]
FILE = "adapter_model.safetensors"
Deltas = dict[str, torch.Tensor]


class AdapterForms:
    """A base model, its loader settings, and a PEFT adapter of it with its deltas."""

    def __init__(self, place: Path, model: Path | None = None) -> None:
        self.place = place
        self.model = model or write_model("qwen2", place / "model")
        self.target = Target(
            read_config(self.model),
            "base",
            1,
            torch.float32,
            16,
            self.model.parent / "cache",
            self.model,
            names=("model",),
        )
        self.plain = self.save("plain")
        self.deltas = self.of_peft(AutoModelForCausalLM, self.plain)

    def save(self, name: str, kind: Any = AutoModelForCausalLM, **options: Any) -> Path:
        """A random adapter with seeded weights, as PEFT saves it; `options` are fields of LoraConfig."""
        base = kind.from_pretrained(self.model)
        saved = {"save_embedding_layers": options.pop("save_embedding_layers", False)}
        fields = {"r": 4, "lora_alpha": 6, "target_modules": MODULES} | options
        model = get_peft_model(base, LoraConfig(**fields))
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.normal_(0, 0.3)
        model.save_pretrained(str(self.place / name), **saved)
        return self.place / name

    def of_peft(self, kind: Any, directory: Path) -> Deltas:
        """Each module's delta in PEFT; names are without `model.`."""
        model = PeftModel.from_pretrained(kind.from_pretrained(self.model), str(directory))
        return {
            name.split("layers.", 1)[1]: module.get_delta_weight("default").detach()
            for name, module in model.base_model.model.named_modules()
            if hasattr(module, "get_delta_weight")
        }

    def of_motet(self, directory: Path) -> Deltas:
        """Each module's delta in Motet, after preparation."""
        prepared = prepare_adapter([AdapterPart(str(directory))], self.target)
        tensors = load_file(prepared.files[0])
        deltas = {}
        for entry in prepared.entries:
            a, b = (tensors[f"{entry.layer}.{entry.module}.{side}"] for side in "AB")
            place = "mlp" if entry.module == "down_proj" else "self_attn"
            deltas[f"{entry.layer}.{place}.{entry.module}"] = entry.scale * (b.T @ a)
        return deltas

    def changed(self, change: Callable[[Tensors], Tensors], name: str = "changed", **fields: Any) -> Path:
        """Write the plain adapter with changed tensors and config fields into the directory `name`."""
        directory = self.place / name
        shutil.copytree(self.plain, directory, dirs_exist_ok=True)
        save_file({n: t.contiguous() for n, t in change(load_file(self.plain / FILE)).items()}, directory / FILE)
        config = json.loads((self.plain / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps(config | fields))
        return directory


def assert_same(ours: Deltas, theirs: Deltas) -> None:
    """Assert that modules and deltas are equal within fp32 rounding."""
    assert set(ours) == set(theirs)
    for name, delta in theirs.items():
        assert float(delta.abs().max()) > 0.1, "the adapter does something"
        torch.testing.assert_close(ours[name], delta, rtol=1e-4, atol=1e-4)
