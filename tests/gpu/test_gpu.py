"""What needs a real GPU: the engine on CUDA against the fp32 oracle, over model families, prompt lengths and shards.

`make gpu-check` runs the long prompts, `pytest -m gpu` everything; without a GPU they are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu.against_peft import LENGTHS, differences, write_head_64_model
from support.tiny_models import FAMILIES, write_model

from motet.core.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

SHARDS = [n for n in (1, 2, 4) if n <= max(1, torch.cuda.device_count())]


@pytest.mark.parametrize("shards", SHARDS)
def test_long_prompts_agree_with_peft(shards: int, tmp_path: Path) -> None:
    model = write_head_64_model(tmp_path / "model")
    settings = Settings(device="cuda", dtype="bfloat16", shards=shards)
    found = differences(model, settings, LENGTHS, tmp_path)
    assert [d for d in found if not d.acceptable("cuda")] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [n for n in SHARDS if n <= 2])  # the families' heads cannot be split in 4
def test_families_agree_with_peft(family: str, shards: int, tmp_path: Path) -> None:
    model = write_model(family, tmp_path / "model")
    settings = Settings(device="cuda", dtype="bfloat16", shards=shards)
    found = differences(model, settings, (40,), tmp_path)
    assert [d for d in found if not d.acceptable("cuda")] == []
