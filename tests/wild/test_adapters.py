"""Adapters as people publish them: one case per public report, with the verdict that is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from support.adapter_forms import MODULES, AdapterForms, assert_same


@dataclass(frozen=True)
class Config:
    """A report of an adapter_config.json with these fields, which PEFT reads as the plain adapter's."""

    reports: str
    fields: dict[str, Any]


CONFIGS = {
    "unsloth-4bit-base": Config(
        "sglang#374",
        {
            "base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit",
            "revision": "unsloth",
            "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        },
    ),
    "targets-twice": Config("a public repository", {"target_modules": MODULES * 2}),
    "alpaca-lora": Config("PEFT 0.2", {"enable_lora": None, "merge_weights": False}),
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> AdapterForms:
    return AdapterForms(tmp_path_factory.mktemp("wild"))


@pytest.mark.parametrize("row", CONFIGS)
def test_configs_that_mean_the_plain_adapter(forms: AdapterForms, row: str) -> None:
    directory = forms.changed(lambda tensors: tensors, **CONFIGS[row].fields)
    assert_same(forms.of_motet(directory), forms.deltas)
