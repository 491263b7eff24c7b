"""Prepares an adapter, or several merged into one: parse, check, shard, and write one file a rank, keyed by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from motet.core.errors import AdapterRefused
from motet.core.messages import MAX_PARTS, AdapterPart, PreparedAdapter
from motet.core.tokens import AdapterTokens
from motet.engine.adapters.merge import Merge
from motet.engine.adapters.peft_config import MAX_CONFIG_BYTES, LoraConfig, read_config
from motet.engine.adapters.prepared_files import find_prepared, write_prepared
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
        prepared = _kept(fingerprint, target, "merged") or _built(fingerprint, pairs, target, "merged")
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


def _kept(fingerprint: str, target: Target, folder: str = "prepared") -> PreparedAdapter | None:
    """What was prepared before, if all of it is still there."""
    return find_prepared(target.cache / folder / fingerprint, target.shards)


def _built(fingerprint: str, pairs: list[LoraPair], target: Target, folder: str = "prepared") -> PreparedAdapter:
    """`pairs` as one file a rank, and a record of them."""

    def tensors(rank: int) -> dict[str, Tensor]:
        shards = [shard_pair(pair, ShardGroup(rank, target.shards), target.dtype) for pair in pairs]
        return {name: t for shard in shards for name, t in shard.items()}

    prepared = PreparedAdapter("", fingerprint, (), tuple(pair.entry for pair in pairs), 0)
    ranks = [partial(tensors, rank) for rank in range(target.shards)]
    return write_prepared(target.cache / folder / fingerprint, prepared, ranks)


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
