"""An adapter of a base without a head (AutoModel) gives PEFT's embeddings through the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from support.tiny_models import write_model
from transformers import AutoModel

from motet.core.settings import Settings
from motet.engine.llm import Engine

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79]


def test_embeddings_of_a_headless_adapter(tmp_path: Path) -> None:
    directory = write_model("llama", tmp_path / "model")
    base = AutoModel.from_pretrained(directory, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="FEATURE_EXTRACTION")
    model = get_peft_model(base, config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
        expected = model(input_ids=torch.tensor([PROMPT])).last_hidden_state[0, -1]
    model.save_pretrained(str(tmp_path / "adapter"))

    async def embed() -> tuple[torch.Tensor, torch.Tensor]:
        async with Engine.open(directory, Settings(device="cpu", kv_memory="16MiB")) as engine:
            adapter = await engine.adapter(tmp_path / "adapter")
            with_adapter = await engine.embed(PROMPT, adapter=adapter)
            return torch.tensor(with_adapter), torch.tensor(await engine.embed(PROMPT))

    ours, plain = asyncio.run(embed())
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(ours, expected, dim=0)) > 0.99999
    assert float(cosine(plain, expected, dim=0)) < 0.9, "the adapter matters"
