"""Adapters as other tools write them: accepted forms have PEFT's deltas, refused ones after following the advice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.tiny_lora import Tensors
from support.tiny_models import write_model
from transformers import AutoModel, AutoModelForCausalLM

from motet.core.errors import AdapterRefused
from motet.core.messages import AdapterPart
from motet.engine.adapters.prepare import Target, prepare_adapter
from motet.engine.models.config import read_config

MODULES = ["q_proj", "v_proj", "down_proj"]
FILE = "adapter_model.safetensors"
Deltas = dict[str, torch.Tensor]


class World:
    """A base model, what prepares adapters for it, and a PEFT adapter of it with its deltas."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.model = write_model("qwen2", place / "model")
        self.target = Target(
            read_config(self.model), "base", 1, torch.float32, 16, place / "cache", self.model, names=("model",)
        )
        self.plain = self.save("plain")
        self.deltas = self.of_peft(AutoModelForCausalLM, self.plain)

    def save(self, name: str, kind: Any = AutoModelForCausalLM, **options: Any) -> Path:
        """A random adapter with seeded weights, as PEFT saves it."""
        base = kind.from_pretrained(self.model)
        saved = {"save_embedding_layers": options.pop("save_embedding_layers", False)}
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, **options))
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.normal_()
        model.save_pretrained(str(self.place / name), **saved)
        return self.place / name

    def of_peft(self, kind: Any, directory: Path) -> Deltas:
        """Each module's delta in PEFT, without the names' `model.`."""
        model = PeftModel.from_pretrained(kind.from_pretrained(self.model), str(directory))
        return {
            name.split("layers.", 1)[1]: module.get_delta_weight("default").detach()
            for name, module in model.base_model.model.named_modules()
            if hasattr(module, "get_delta_weight")
        }

    def of_motet(self, directory: Path) -> Deltas:
        """Each module's delta here, after preparation."""
        prepared = prepare_adapter([AdapterPart(str(directory))], self.target)
        tensors = load_file(prepared.files[0])
        deltas = {}
        for entry in prepared.entries:
            a, b = (tensors[f"{entry.layer}.{entry.module}.{side}"] for side in "AB")
            place = "mlp" if entry.module == "down_proj" else "self_attn"
            deltas[f"{entry.layer}.{place}.{entry.module}"] = entry.scale * (b.T @ a)
        return deltas

    def changed(self, change: Callable[[Tensors], Tensors], **fields: Any) -> Path:
        """The plain adapter with other tensors and config fields, in a directory of its own."""
        directory = self.place / "changed"
        shutil.copytree(self.plain, directory, dirs_exist_ok=True)
        save_file({n: t.contiguous() for n, t in change(load_file(self.plain / FILE)).items()}, directory / FILE)
        config = json.loads((self.plain / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps(config | fields))
        return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("forms"))


def assert_same(ours: Deltas, theirs: Deltas) -> None:
    """The same modules, and the same deltas as far as fp32 goes."""
    assert set(ours) == set(theirs)
    for name, delta in theirs.items():
        assert float(delta.abs().max()) > 0.1, "the adapter does something"
        torch.testing.assert_close(ours[name], delta, rtol=1e-4, atol=1e-4)


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
def test_forms_that_peft_saves(world: World, kind: Any, options: dict[str, Any]) -> None:
    """Qwen2 has biases, which PEFT saves with `bias`, though LoRA's training did not change them here."""
    directory = world.save("form", kind, **options)
    try:
        names = set(load_file(directory / FILE))
        if "bias" in options or "save_embedding_layers" in options:
            assert any("lora_" not in name for name in names), "the form has more than LoRA's tensors"
        assert_same(world.of_motet(directory), world.of_peft(kind, directory))
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
def test_configs_that_peft_reads_as_the_same(world: World, fields: dict[str, Any]) -> None:
    assert_same(world.of_motet(world.changed(lambda tensors: tensors, **fields)), world.deltas)


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
def test_following_the_advice_on_names(world: World, form: str) -> None:
    """Rename what each message says, one by one, as a person would with a script."""
    directory = world.changed(NAMES[form])
    tensors = load_file(directory / FILE)
    for _ in tensors.keys() - load_file(world.plain / FILE).keys():
        with pytest.raises(AdapterRefused) as caught:
            world.of_motet(directory)
        found = re.search(r"^tensor (\S+) matches no .* rename (?:it|the tensor) to (\S+)$", caught.value.message)
        assert found is not None, caught.value.message
        tensors[found[2]] = tensors.pop(found[1])
        save_file(tensors, directory / FILE)
    assert_same(world.of_motet(directory), world.deltas)


def test_following_the_advice_on_mlx(world: World) -> None:
    def to_mlx(tensors: Tensors) -> Tensors:
        return {
            n.removeprefix("base_model.model.")
            .replace(".weight", "")
            .replace("lora_A", "lora_a")
            .replace("lora_B", "lora_b"): t.T
            for n, t in tensors.items()
        }

    directory = world.changed(to_mlx)
    with pytest.raises(AdapterRefused, match=r"MLX's format.*transpose lora_a and lora_b.*lora_alpha to rank times"):
        world.of_motet(directory)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 1.5}}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterRefused, match="MLX's, not PEFT's; convert it"):
        world.of_motet(directory)
    rewritten = {
        f"base_model.model.{n[:-1]}{n[-1].upper()}.weight": t.T.contiguous()
        for n, t in load_file(directory / FILE).items()
    }
    save_file(rewritten, directory / FILE)
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 4 * 1.5, "target_modules": MODULES}
    (directory / "adapter_config.json").write_text(json.dumps(peft))
    assert_same(world.of_motet(directory), world.deltas)


def test_following_the_advice_on_fused_projections(world: World) -> None:
    """A fused projection's delta is its parts' deltas, one below the other."""
    prefix = "base_model.model.model.layers.0.self_attn"
    a, b = torch.randn(4, 96), torch.randn(192, 4)

    def fused(_: Tensors) -> Tensors:
        return {f"{prefix}.qkv_proj.lora_A.weight": a, f"{prefix}.qkv_proj.lora_B.weight": b}

    with pytest.raises(AdapterRefused, match=r"qkv_proj is a fused projection.*copy of lora_A and its own rows"):
        world.of_motet(world.changed(fused, target_modules=["qkv_proj"]))

    def separate(_: Tensors) -> Tensors:
        parts = zip(("q_proj", "k_proj", "v_proj"), b.split([96, 48, 48]), strict=True)
        return {
            f"{prefix}.{name}.lora_{side}.weight": t.clone()
            for name, rows in parts
            for side, t in (("A", a), ("B", rows))
        }

    ours = world.of_motet(world.changed(separate, target_modules=["q_proj", "k_proj", "v_proj"]))
    whole = torch.cat([ours[f"0.self_attn.{name}"] for name in ("q_proj", "k_proj", "v_proj")])
    torch.testing.assert_close(whole, 1.5 * b @ a, rtol=1e-4, atol=1e-4)
