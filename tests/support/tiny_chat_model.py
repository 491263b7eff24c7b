"""A tiny random chat model, for tests that need a real server but no meaningful answers."""

from __future__ import annotations

from pathlib import Path

from support.scripted_api import write_model as write_tokenizer
from support.tiny_models import write_model


def write_chat_model(directory: Path, family: str = "llama") -> Path:
    """Write weights, a tokenizer with one token per byte, and a chat template into `directory`."""
    return write_tokenizer(write_model(family, directory))
