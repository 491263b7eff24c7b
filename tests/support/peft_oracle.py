"""The reference: transformers + PEFT in fp32, and random PEFT adapters of every shape."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.equality import Scored
from transformers import AutoModelForCausalLM

RANKS = (1, 3, 4, 8, 12, 16, 64)
SCALES = ("plain", "rslora", "patterns")
TARGETS = ("qv", "all", "some_layers", "missing_layer")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class AdapterCase:
    """One case of the parameter sweep."""

    rank: int
    scale: str
    targets: str

    @property
    def name(self) -> str:
        """The case's directory name."""
        return f"r{self.rank}-{self.scale}-{self.targets}"


def all_cases() -> list[AdapterCase]:
    """All cases."""
    return [AdapterCase(*point) for point in product(RANKS, SCALES, TARGETS)]


def pairwise_cases() -> list[AdapterCase]:
    """Cases that cover all pairs of values: every rank with every target set, and the scales in rotation."""
    return [
        AdapterCase(rank, SCALES[(i + j) % len(SCALES)], targets)
        for i, rank in enumerate(RANKS)
        for j, targets in enumerate(TARGETS)
    ]


def each_value_cases() -> list[AdapterCase]:
    """One case per rank; together they cover every scale and every form of target_modules."""
    return [
        AdapterCase(rank, SCALES[i % len(SCALES)], TARGETS[i % len(TARGETS)]) for i, rank in enumerate(reversed(RANKS))
    ]


def write_adapter(base: Any, case: AdapterCase, directory: Path) -> Path:
    """Save a random adapter for `case` in PEFT's own format. Does not change `base`."""
    torch.manual_seed(case.rank * 101 + len(case.name))
    options: dict[str, Any] = {"r": case.rank, "lora_alpha": 2 * case.rank, "use_rslora": case.scale == "rslora"}
    if case.scale == "rslora":
        options["lora_alpha"] = case.rank**0.5 * 2
    if case.scale == "patterns":
        options["rank_pattern"] = {r"layers\.1\.self_attn\.q_proj": case.rank + 1, "v_proj": max(1, case.rank // 2)}
        options["alpha_pattern"] = {"q_proj": case.rank * 3, r"layers\.2\..*": case.rank / 2}
    if case.targets == "some_layers":
        options["layers_to_transform"] = [1, 2]
    targets = ["q_proj", "v_proj"] if case.targets == "qv" else LINEARS
    config = LoraConfig(target_modules=targets, **options)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                fan = parameter.shape[1] if "lora_A" in name else parameter.shape[0]
                parameter.normal_(
                    0, 0.5 / (parameter.shape["lora_B" in name] ** 0.5) if "lora_B" in name else fan**-0.5
                )
    model.save_pretrained(directory)
    model.unload()
    if case.targets == "missing_layer":
        path = directory / "adapter_model.safetensors"
        kept = {name: t for name, t in load_file(path).items() if not re.search(r"layers\.2\.mlp\.|layers\.3\.", name)}
        save_file(kept, path, metadata={"format": "pt"})
    raw = json.loads((directory / "adapter_config.json").read_text())
    assert raw["init_lora_weights"] is True, "missing tensors then mean no change, in PEFT as here"
    return directory


class Oracle:
    """transformers + PEFT with one base model."""

    def __init__(self, model_directory: Path) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
        self.vocab_size = int(self.base.config.vocab_size)

    @torch.no_grad()
    def score(self, prompt: list[int], output: list[int], adapter: Path | None) -> tuple[list[Scored], list[float]]:
        """The greedy token after the prompt and each prefix of `output`, and the gap of the best two."""
        ids = torch.tensor([[*prompt, *output]])
        if adapter is None:
            logits = self.base(ids).logits
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns about tensors that a case omits on purpose
                model = PeftModel.from_pretrained(self.base, str(adapter)).eval()
            logits = model(ids).logits
            self.base = model.unload()
        logprobs = torch.log_softmax(logits[0, len(prompt) - 1 : -1].float(), dim=-1)
        best = logprobs.topk(2, dim=-1)
        chosen = [Scored(int(t), float(p)) for t, p in zip(best.indices[:, 0], best.values[:, 0], strict=True)]
        return chosen, (best.values[:, 0] - best.values[:, 1]).tolist()
