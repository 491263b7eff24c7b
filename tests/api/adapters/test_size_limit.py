"""The size of the largest adapter that is downloaded: never below what the loader takes."""

import json
from pathlib import Path

import pytest

from motet.api.adapters.limits import LARGEST, largest_adapter
from motet.engine.adapters.lora_tensors import largest_adapter as loaders_limit
from motet.engine.models.architectures import read_config

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


@pytest.mark.parametrize("max_rank", [1, 16, 256, 512])
def test_it_is_no_smaller_than_the_loaders(tmp_path: Path, max_rank: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    assert loaders_limit(read_config(tmp_path), max_rank) <= largest_adapter(tmp_path, max_rank) < LARGEST


def test_without_a_config_that_can_be_read_it_is_the_largest(tmp_path: Path) -> None:
    assert largest_adapter(tmp_path, 8) == LARGEST
    (tmp_path / "config.json").write_text('{"hidden_size": "wide"}')
    assert largest_adapter(tmp_path, 8) == LARGEST
    (tmp_path / "config.json").write_text(json.dumps({**SMOLLM2, "num_hidden_layers": 3000}))
    assert largest_adapter(tmp_path, 4096) == LARGEST
