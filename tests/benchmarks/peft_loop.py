"""The baseline: transformers and PEFT, one request and one adapter at a time. Runs in a separate process.

`python -m tests.benchmarks.peft_loop MODEL ADAPTERS` creates missing adapters and prints one
line when it is ready; then, for each line that it reads, it serves a request to each adapter and prints the seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from motet.api.bench.workload import Workload
from tests.benchmarks.load import ADAPTERS, OUTPUT_TOKENS, PROMPT_TOKENS

RANKS = (8, 16)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEVIATION = 0.02
"""Standard deviation of A and B: each adapter has an effect, but does not dominate the base."""


def load_base(directory: Path) -> torch.nn.Module:
    """The base model in fp32, which never samples an end of text."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    model.generation_config.eos_token_id = None
    base: torch.nn.Module = model.eval()
    return base


def make_adapters(base: torch.nn.Module, root: Path) -> None:
    """Save an adapter under `root` for each of ADAPTERS, as PEFT saves them, with random weights and ranks in turn."""
    for i, name in enumerate(ADAPTERS):
        rank = RANKS[i % len(RANKS)]
        model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), adapter_name=name)
        random = torch.Generator().manual_seed(i)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=DEVIATION, generator=random)
        model.save_pretrained(str(root))
        base = model.unload()


def load_adapters(base: torch.nn.Module, root: Path) -> PeftModel:
    """All adapters on one base model, with one active at a time."""
    model = PeftModel.from_pretrained(base, root / ADAPTERS[0], adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        model.load_adapter(root / name, adapter_name=name)
    return model.eval()


@torch.inference_mode()
def serve(model: PeftModel, workload: Workload) -> float:
    """Answer every request of the workload, greedily and to its full length; returns the seconds."""
    started = time.perf_counter()
    for i in range(workload.requests):
        model.set_adapter(workload.model_of(i), inference_mode=True)
        prompt = torch.tensor([workload.prompt(i)])
        output = model.generate(  # type: ignore[no-untyped-call]
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=workload.output_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        assert output.shape[1] == workload.prompt_tokens + workload.output_tokens
    return time.perf_counter() - started


def main() -> None:
    """Run the process that the module docstring describes."""
    directory, root = map(Path, sys.argv[1:3])
    torch.set_num_threads(os.cpu_count() or 1)
    logging.disable_progress_bar()
    if not all((root / name).is_dir() for name in ADAPTERS):
        make_adapters(load_base(directory), root)
    model = load_adapters(load_base(directory), root)
    requests = len(ADAPTERS)
    serve(model, Workload("", ADAPTERS, "distinct", requests, PROMPT_TOKENS, 4, "ids"))
    print(json.dumps({name: version(name) for name in ("torch", "transformers", "peft")}), flush=True)
    workload = Workload("", ADAPTERS, "distinct", requests, PROMPT_TOKENS, OUTPUT_TOKENS, "ids")
    for _ in sys.stdin:
        print(serve(model, workload), flush=True)


if __name__ == "__main__":
    main()
