"""Prepares adapters of the tiny Llama into a cache, as the loader process does, but in the test's own process."""

from __future__ import annotations

from pathlib import Path

import torch
from support.tiny_adapters import MODEL

from motet.core.messages import AdapterPart, PreparedAdapter
from motet.engine.adapters.prepare import Target, prepare_adapter


def target_in(directory: Path, shards: int = 1) -> Target:
    """The loader's spec: float32 on `shards` ranks, with the cache and the base model in `directory`."""
    return Target(MODEL, "base", shards, torch.float32, 8, directory / "cache", directory / "model")


def prepare(source: Path, target: Target, *weights: float) -> PreparedAdapter:
    """Prepare the adapter in `source`; with several weights, merge it with itself."""
    return prepare_adapter([AdapterPart(str(source), weight) for weight in weights or (1.0,)], target)
