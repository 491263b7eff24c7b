"""Prepares an adapter: parse, check, shard, and write one file a rank, keyed by content."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from motet.core.errors import AdapterRefused
from motet.core.messages import PreparedAdapter
from motet.core.paths import build_directory
from motet.engine.adapters.peft_config import MAX_CONFIG_BYTES, read_config
from motet.engine.adapters.tensors import (
    check_rank,
    largest_adapter,
    match_pairs,
    parse_weights,
    read_weights,
    shard_pair,
)
from motet.engine.models.config import ModelConfig
from motet.engine.parallel import ShardGroup

LAYOUT = 2
"""Part of the fingerprint: raise it when prepared files change."""


@dataclass(frozen=True)
class Target:
    """What adapters are prepared for: the model, its sharding and dtype, the rank limit, and where files go."""

    model: ModelConfig
    base_fingerprint: str
    shards: int
    dtype: torch.dtype
    max_rank: int
    cache: Path


def prepare_adapter(directory: Path, target: Target) -> PreparedAdapter:
    """The adapter in `directory`, prepared for `target`. Raises AdapterRefused with what is wrong with it."""
    config = read_config(directory)
    data = read_weights(directory, largest_adapter(target.model, target.max_rank))
    fingerprint = _fingerprint(directory, data, target)
    home = target.cache / "prepared" / fingerprint
    record = home / "adapter.json"
    if not all(
        (home / name).is_file() for name in ("adapter.json", *map("{}.safetensors".format, range(target.shards)))
    ):
        shutil.rmtree(home, ignore_errors=True)
        pairs = match_pairs(parse_weights(data), config, target.model, target.max_rank)

        def fill(scratch: Path) -> None:
            size = 0
            for rank in range(target.shards):
                group = ShardGroup(rank, target.shards)
                parts = [shard_pair(pair, group, target.dtype) for pair in pairs]
                save_file({name: t for part in parts for name, t in part.items()}, scratch / f"{rank}.safetensors")
                size += (scratch / f"{rank}.safetensors").stat().st_size
            prepared = PreparedAdapter(
                id="",
                fingerprint=fingerprint,
                files=tuple(f"{rank}.safetensors" for rank in range(target.shards)),
                entries=tuple(pair.entry for pair in pairs),
                bytes=size,
            )
            (scratch / "adapter.json").write_bytes(msgspec.json.encode(prepared))

        build_directory(home, fill)
    prepared = msgspec.json.decode(record.read_bytes(), type=PreparedAdapter)
    for entry in prepared.entries:  # the record may be of a server with a higher limit
        check_rank(f"layer {entry.layer}, {entry.module}", entry.rank, target.max_rank)
    files = tuple(str(home / name) for name in prepared.files)
    return msgspec.structs.replace(prepared, files=files, eos_token_ids=_eos(directory, target.model.vocab_size))


def _fingerprint(directory: Path, data: bytes, target: Target) -> str:
    digest = hashlib.sha256(f"{LAYOUT} {target.base_fingerprint} {target.shards} {target.dtype}".encode())
    digest.update((directory / "adapter_config.json").read_bytes())
    digest.update(data)
    return digest.hexdigest()[:32]


def _eos(directory: Path, vocab_size: int) -> tuple[int, ...]:
    """The adapter's own end-of-text ids, from its generation_config.json if it has one."""
    path = directory / "generation_config.json"
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        return ()
    try:
        eos = json.loads(path.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise AdapterRefused(f"the adapter's generation_config.json is not a JSON object: {error}") from error
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids):
        raise AdapterRefused(f"the adapter's generation_config.json: eos_token_id must be ids in 0..{vocab_size - 1}")
    return tuple(ids)
