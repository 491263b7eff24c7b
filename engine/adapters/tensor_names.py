"""Parses the names of an adapter's tensors: LoRA pairs and copies of base weights; others are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from motet.core.errors import AdapterRefused
from motet.engine.adapters.tensor_name_errors import explain_tensor, shown
from motet.engine.layers.linear import LinearSpec, Part
from motet.engine.models.architectures import ModelConfig
from motet.engine.models.linear_specs import linear_specs

# Only one spelling is accepted: a second one would give a module two pairs. PEFT uses the module names of the wrapped
# class: in AutoModelForCausalLM, `model.` precedes the layers, in AutoModel it does not.
_LAYER = r"(?P<root>model\.)?layers\.(?P<layer>0|[1-9][0-9]{0,5})\.(?P<module>\w+\.\w+)"
_PAIR = re.compile(rf"base_model\.model\.(?P<peft>{_LAYER})\.lora_(?P<side>[AB])\.weight", re.ASCII)
_COPIES = [
    re.compile(rf"base_model\.model\.{_LAYER}\.(base_layer\.(?P<of>weight|bias)|(?P<own>bias))", re.ASCII),
    re.compile(r"base_model\.model\.((?P<root>model\.)?embed_tokens|lm_head)\.(base_layer\.)?weight"),
]


@dataclass
class LoraNames:
    """One module's pair by its tensors' names; `peft_module` is what PEFT calls the module."""

    peft_module: str
    a: str = ""
    b: str = ""


@dataclass
class AdapterLayout:
    """The pairs by (layer, module), such as (0, "self_attn.q_proj"), and the copies with their names in the base."""

    pairs: dict[tuple[int, str], LoraNames] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


def lora_modules(model: ModelConfig) -> dict[str, tuple[LinearSpec, Part]]:
    """The modules of a layer that LoRA can target, such as `self_attn.q_proj`."""
    return {f"{spec.parent}.{part.name}": (spec, part) for spec in linear_specs(model).values() for part in spec.parts}


def read_layout(names: Iterable[str], model: ModelConfig) -> AdapterLayout:
    """Parse the tensors' names. Raises AdapterRefused for the first one that LoRA cannot use here."""
    modules, layout = lora_modules(model), AdapterLayout()
    for name in sorted(names):
        if copied := _copied(name, model, modules):
            layout.copies[name] = copied
            continue
        found = _PAIR.fullmatch(name)
        if found is None or found["module"] not in modules or int(found["layer"]) >= model.num_layers:
            why = explain_tensor(name, model, modules)
            raise AdapterRefused(f"tensor {shown(name)} matches no module that LoRA can target here: {why}")
        pair = layout.pairs.setdefault((int(found["layer"]), found["module"]), LoraNames(found["peft"]))
        if pair.peft_module != found["peft"]:
            raise AdapterRefused(
                f"tensor {name} is for the same module as those of {pair.peft_module}; keep one of the two"
            )
        setattr(pair, found["side"].lower(), name)
    for pair in layout.pairs.values():
        if not pair.a or not pair.b:
            raise AdapterRefused(f"tensor {pair.a or pair.b} has no counterpart; lora_A and lora_B go together")
    if not layout.pairs:
        raise AdapterRefused("the adapter has no LoRA tensors; it would have no effect")
    return layout


def _copied(name: str, model: ModelConfig, modules: Iterable[str]) -> str | None:
    """The name of the base tensor that `name` may be a copy of; PEFT saves some copies together with LoRA's tensors."""
    if (found := _COPIES[1].fullmatch(name)) is not None:
        tied = "lm_head" in name and model.tied_embeddings
        return "lm_head.weight" if "lm_head" in name and not tied else "model.embed_tokens.weight"
    found = _COPIES[0].fullmatch(name)
    if found is None or found["module"] not in modules or int(found["layer"]) >= model.num_layers:
        return None
    return f"model.layers.{found['layer']}.{found['module']}.{found['of'] or found['own']}"
