"""Prepares an adapter, or several merged into one: parse, check, shard, and write one file a rank, keyed by content."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from motet.core.errors import AdapterRefused, MotetError
from motet.core.messages import MAX_PARTS, AdapterPart, PreparedAdapter
from motet.core.paths import build_directory
from motet.core.tokens import AdapterTokens
from motet.engine.adapters.merge import Merge
from motet.engine.adapters.peft_config import MAX_CONFIG_BYTES, LoraConfig, read_config
from motet.engine.adapters.tensors import (
    LoraPair,
    check_rank,
    largest_adapter,
    match_pairs,
    parse_weights,
    read_weights,
    shard_pair,
)
from motet.engine.adapters.tokens import BaseTokens, read_tokens
from motet.engine.models.config import ModelConfig
from motet.engine.parallel import ShardGroup

LAYOUT = 2
"""Part of the fingerprint: raise it when prepared files change."""

MERGE_LAYOUT = 1
"""The same for how adapters are merged."""


@dataclass(frozen=True)
class Target:
    """What adapters are prepared for: the model, its sharding and dtype, the rank limit, and where files go.

    `tokens` are the base model's; without them, adapters' tokenizers are not looked at.
    """

    model: ModelConfig
    base_fingerprint: str
    shards: int
    dtype: torch.dtype
    max_rank: int
    cache: Path
    tokens: BaseTokens | None = None


def prepare_adapter(parts: Sequence[AdapterPart], target: Target) -> PreparedAdapter:
    """The sum of `parts`, prepared for `target`: one adapter as it is, or up to MAX_PARTS merged into one.

    A merged adapter has the first one's own end-of-text ids and tokens, as it has its chat template. In memory are
    at most one adapter's file and, in fp32, twice what --max-adapter-rank allows. Raises AdapterRefused with what is
    wrong.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise AdapterRefused(f"{len(parts)} adapters cannot be merged; it takes 1 to {MAX_PARTS}")
    first = parts[0]
    if len(parts) == 1 and first.weight == 1:
        config, data, fingerprint = _read(Path(first.directory), target)
        prepared = _kept(fingerprint, target) or _built(fingerprint, _pairs(config, data, target), target)
    else:
        fingerprint, pairs = _merged(parts, target)
        prepared = _kept(fingerprint, target) or _built(fingerprint, pairs, target)
    for entry in prepared.entries:  # the record may be of a server with a higher limit
        check_rank(f"layer {entry.layer}, {entry.module}", entry.rank, target.max_rank)
    directory, vocab_size = Path(first.directory), target.model.vocab_size
    tokens = read_tokens(directory, target.tokens, vocab_size) if target.tokens else AdapterTokens()
    return msgspec.structs.replace(prepared, eos_token_ids=_eos(directory, vocab_size), tokens=tokens)


def _read(directory: Path, target: Target) -> tuple[LoraConfig, bytes, str]:
    """The adapter's config, its file of weights, and the fingerprint of both."""
    config = read_config(directory)
    data = read_weights(directory, largest_adapter(target.model, target.max_rank))
    return config, data, _fingerprint(directory, data, target)


def _pairs(config: LoraConfig, data: bytes, target: Target) -> list[LoraPair]:
    return match_pairs(parse_weights(data), config, target.model, target.max_rank)


def _merged(parts: Sequence[AdapterPart], target: Target) -> tuple[str, list[LoraPair]]:
    """The merged adapter's fingerprint and pairs. Reads every part, also where the result has been kept: what a
    part's directory holds may be another adapter by now."""
    merge, digest = Merge(target.max_rank), hashlib.sha256(f"linear {MERGE_LAYOUT}".encode())
    for part in parts:
        config, data, fingerprint = _read(Path(part.directory), target)
        digest.update(f" {fingerprint} {float(part.weight).hex()}".encode())
        merge.add(_pairs(config, data, target), part.weight)
    return digest.hexdigest()[:32], merge.pairs()


def _kept(fingerprint: str, target: Target) -> PreparedAdapter | None:
    """What was prepared before, if all of it is still there."""
    home = target.cache / "prepared" / fingerprint
    names = ["adapter.json", *map("{}.safetensors".format, range(target.shards))]
    if not all((home / name).is_file() for name in names):
        shutil.rmtree(home, ignore_errors=True)
        return None
    prepared = msgspec.json.decode((home / "adapter.json").read_bytes(), type=PreparedAdapter)
    return msgspec.structs.replace(prepared, files=tuple(str(home / name) for name in prepared.files))


def _built(fingerprint: str, pairs: list[LoraPair], target: Target) -> PreparedAdapter:
    """`pairs` as one file a rank, and a record of them."""

    def fill(scratch: Path) -> None:
        size = 0
        for rank in range(target.shards):
            group = ShardGroup(rank, target.shards)
            shards = [shard_pair(pair, group, target.dtype) for pair in pairs]
            save_file({name: t for shard in shards for name, t in shard.items()}, scratch / f"{rank}.safetensors")
            size += (scratch / f"{rank}.safetensors").stat().st_size
        prepared = PreparedAdapter(
            id="",
            fingerprint=fingerprint,
            files=tuple(f"{rank}.safetensors" for rank in range(target.shards)),
            entries=tuple(pair.entry for pair in pairs),
            bytes=size,
        )
        (scratch / "adapter.json").write_bytes(msgspec.json.encode(prepared))

    build_directory(target.cache / "prepared" / fingerprint, fill)
    kept = _kept(fingerprint, target)
    if kept is None:
        raise MotetError("a prepared adapter vanished from the cache; try again")
    return kept


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
