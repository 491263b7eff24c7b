"""Tokenizer files of adapters: those of the base model, with renamed added tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_renamed(base: Path, adapter: Path, names: Mapping[int, str], config: Mapping[str, Any] | None = None) -> Path:
    """The base's tokenizer with renamed tokens, also in the vocabulary, as tools that rename tokens write it."""
    adapter.mkdir(parents=True, exist_ok=True)
    file = json.loads((base / "tokenizer.json").read_bytes())
    vocab = {id: name for name, id in file["model"]["vocab"].items()}
    file["model"]["vocab"] = {names.get(id, name): id for id, name in vocab.items()}
    known = {token["id"]: token for token in file["added_tokens"]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    for id, name in names.items():
        known[id] = {"id": id, **flags, **known.get(id, {}), "content": name}
    file["added_tokens"] = [known[id] for id in sorted(known)]
    (adapter / "tokenizer.json").write_text(json.dumps(file))
    write_config(base, adapter, **(config or {}))
    return adapter


def write_config(base: Path, adapter: Path, **changes: object) -> Path:
    """The base's tokenizer_config.json with `changes`, and without its lists of tokens."""
    adapter.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_bytes()) | changes
    config = {name: value for name, value in config.items() if name != "added_tokens_decoder" or name in changes}
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    return adapter
