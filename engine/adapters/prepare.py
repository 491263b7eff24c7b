"""Prepares an adapter, or several merged into one: parse, check, shard, and write a file per rank, keyed by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from motet.core.adapter_tokens import AdapterTokens
from motet.core.errors import AdapterRefused
from motet.core.messages import MAX_PARTS, AdapterPart, PreparedAdapter
from motet.engine.adapters.added_tokens import BaseTokens, read_added_tokens
from motet.engine.adapters.base_model_name import base_model_warning
from motet.engine.adapters.base_weight_copies import check_copies
from motet.engine.adapters.eos_tokens import read_eos_token_ids
from motet.engine.adapters.lora_tensors import (
    LoraPair,
    check_magnitudes,
    check_rank,
    open_weights,
    read_pairs,
    shard_pair,
)
from motet.engine.adapters.merge import AdapterMerger
from motet.engine.adapters.peft_config import read_config
from motet.engine.adapters.prepared_files import find_prepared, write_prepared
from motet.engine.adapters.tensor_names import read_layout
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.models.architectures import ModelConfig

LAYOUT = 3
"""Part of the fingerprint: increase it when the format of prepared files changes."""

MERGE_LAYOUT = 1
"""The same for merged adapters."""


@dataclass(frozen=True)
class Target:
    """What adapters are prepared for: the model, its sharding and dtype, the rank limit, and the cache directory.

    `directory` has the model's files; `names` are the model's names in adapters' configs; without `tokens`, adapters'
    tokenizers are ignored.
    """

    model: ModelConfig
    base_fingerprint: str
    shards: int
    dtype: torch.dtype
    max_rank: int
    cache: Path
    directory: Path
    names: tuple[str, ...] = ()
    tokens: BaseTokens | None = None


@dataclass(frozen=True)
class _AdapterFiles:
    """The contents of an adapter's files: its pairs, the base model in its config, and their fingerprint."""

    pairs: list[LoraPair]
    base_model: object
    fingerprint: str


def prepare_adapter(parts: Sequence[AdapterPart], target: Target) -> PreparedAdapter:
    """Prepare the sum of `parts` for `target`: one adapter unchanged, or up to MAX_PARTS merged into one.

    A merged adapter has the end-of-text ids, tokens and chat template of the first one. At most one adapter's file and,
    in fp32, twice the size that --max-adapter-rank allows are in memory. Raises AdapterRefused with the fault.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise AdapterRefused(f"{len(parts)} adapters cannot be merged; the number must be 1 to {MAX_PARTS}")
    first = parts[0]
    if len(parts) == 1 and first.weight == 1:
        files = _read(Path(first.directory), target)
        prepared = _cached(files.fingerprint, target) or _write(files.fingerprint, files.pairs, target)
        base_models = [files.base_model]
    else:
        fingerprint, pairs, base_models = _merged(parts, target)
        prepared = _cached(fingerprint, target, "merged") or _write(fingerprint, pairs, target, "merged")
    for entry in prepared.entries:  # the cached record may be of a server with a higher limit
        check_rank(f"layer {entry.layer}, {entry.module}", entry.lora_rank, target.max_rank)
    warnings = (base_model_warning(name, target.names) for name in base_models)
    eos, tokens = _eos_and_tokens(Path(first.directory), target)
    return msgspec.structs.replace(
        prepared, eos_token_ids=eos, tokens=tokens, warnings=tuple(dict.fromkeys(filter(None, warnings)))
    )


def check_adapter(directory: Path, target: Target) -> tuple[str, ...]:
    """Check whether the adapter in `directory` can be served, without writing anything; returns its warnings.

    Raises AdapterRefused with the fault.
    """
    files = _read(directory, target)
    check_magnitudes(files.pairs, target.dtype)
    _eos_and_tokens(directory, target)
    warning = base_model_warning(files.base_model, target.names)
    return (warning,) if warning else ()


def _eos_and_tokens(directory: Path, target: Target) -> tuple[tuple[int, ...], AdapterTokens]:
    """The adapter's own end-of-text ids and tokens."""
    vocab_size = target.model.vocab_size
    tokens = read_added_tokens(directory, target.tokens, vocab_size) if target.tokens else AdapterTokens()
    return read_eos_token_ids(directory, vocab_size), tokens


def _read(directory: Path, target: Target) -> _AdapterFiles:
    """Read the adapter's files. The fingerprint covers the data that is used, so concurrent changes do no harm."""
    config = read_config(directory)
    with open_weights(directory) as weights:
        layout = read_layout(weights.tensors, target.model)
        pairs = read_pairs(weights, layout, config, target.model, target.max_rank)
        check_copies(weights, layout.copies, target.directory)
    digest = hashlib.sha256(f"{LAYOUT} {target.base_fingerprint} {target.shards} {target.dtype}".encode())
    digest.update(config.digest)
    digest.update(weights.header)
    for pair in pairs:
        for tensor in (pair.a, pair.b):
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return _AdapterFiles(pairs, config.base_model, digest.hexdigest()[:32])


def _merged(parts: Sequence[AdapterPart], target: Target) -> tuple[str, list[LoraPair], list[object]]:
    """The merged adapter's fingerprint and pairs, and the base models in the parts' configs.

    Reads every part even if the result is cached: a part's directory may contain another adapter by now.
    """
    merger, digest = AdapterMerger(target.max_rank), hashlib.sha256(f"linear {MERGE_LAYOUT}".encode())
    base_models = []
    for part in parts:
        files = _read(Path(part.directory), target)
        digest.update(f" {files.fingerprint} {float(part.weight).hex()}".encode())
        merger.add(files.pairs, part.weight)
        base_models.append(files.base_model)
    return digest.hexdigest()[:32], merger.pairs(), base_models


def _cached(fingerprint: str, target: Target, folder: str = "prepared") -> PreparedAdapter | None:
    """The prepared adapter in the cache, if it is complete."""
    return find_prepared(target.cache / folder / fingerprint, target.shards)


def _write(fingerprint: str, pairs: list[LoraPair], target: Target, folder: str = "prepared") -> PreparedAdapter:
    """Write `pairs` as one file per rank, and a record of them."""
    check_magnitudes(pairs, target.dtype)

    def tensors(rank: int) -> dict[str, Tensor]:
        shards = [shard_pair(pair, ShardGroup(rank, target.shards), target.dtype) for pair in pairs]
        return {name: t for shard in shards for name, t in shard.items()}

    prepared = PreparedAdapter("", fingerprint, (), tuple(pair.entry for pair in pairs), 0)
    ranks = [partial(tensors, rank) for rank in range(target.shards)]
    return write_prepared(target.cache / folder / fingerprint, prepared, ranks)
