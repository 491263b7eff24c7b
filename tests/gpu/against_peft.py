"""The engine on a device against transformers and PEFT in float32: head size 64, and prompts over several blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from support.equality import Scored
from support.peft_oracle import AdapterCase, Oracle, write_adapter
from transformers import AutoModelForCausalLM, LlamaConfig

from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.llm import Engine

PARAMS = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0)
CASES = (AdapterCase(8, "plain", "all"), AdapterCase(16, "rslora", "qv"), AdapterCase(64, "patterns", "some_layers"))
LENGTHS = (40, 250, 300, 700)
"""Prompt lengths. Blocks have 256 tokens on a GPU: the second prompt's output crosses into another block."""

TOLERANCE = {"cuda": 0.3, "cpu": 1e-3}
"""In logprobs. bfloat16 has 8 bits; this is what its rounding comes to in a logprob of these small models."""


@dataclass(frozen=True)
class Differences:
    """The largest difference of a logprob, and how many tokens differ although the reference's choice is clear."""

    adapter: str
    prompt: int
    logprob: float
    tokens: int

    def acceptable(self, device: str) -> bool:
        """Whether rounding explains them."""
        return self.logprob < TOLERANCE[device] and not self.tokens


def write_head_64_model(directory: Path) -> Path:
    """Write a random Llama with heads of 64 that 1, 2 and 4 ranks can split; its weights are exact in bfloat16."""
    torch.manual_seed(64)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(directory)
    return directory


def differences(model: Path, settings: Settings, lengths: Sequence[int], scratch: Path) -> list[Differences]:
    """Serve every prompt length with the base model and every adapter at once, and compare with the reference."""
    oracle = Oracle(model)
    adapters = [None, *(write_adapter(oracle.base, case, scratch / case.name) for case in CASES)]
    requests = [(adapter, [(11 * i + n) % 259 for i in range(n)]) for adapter in adapters for n in lengths]

    async def serve() -> list[list[Scored]]:
        async with Engine.open(model, settings) as engine:
            prepared = {a: None if a is None else await engine.adapter(a) for a in adapters}
            calls = (engine.complete(prompt, PARAMS, prepared[a]) for a, prompt in requests)
            answers = await asyncio.gather(*calls)
            return [[Scored(e.token, e.logprob or 0.0) for e in events] for events in answers]

    found, tolerance = [], TOLERANCE[settings.device]
    for (adapter, prompt), ours in zip(requests, asyncio.run(serve()), strict=True):
        reference, margins = oracle.score(prompt, [s.token for s in ours], adapter)
        logprob, tokens = 0.0, 0
        for mine, theirs, margin in zip(ours, reference, margins, strict=True):
            if mine.token == theirs.token:
                logprob = max(logprob, abs(mine.logprob - theirs.logprob))
            elif margin >= tolerance:
                tokens += 1
        found.append(Differences(adapter.name if adapter else "base", len(prompt), logprob, tokens))
    return found
