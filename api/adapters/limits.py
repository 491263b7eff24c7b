"""Limits on loading adapters, and the largest weights file that can fit the base model; without torch.

The largest file is an upper bound, used to end downloads early. The loader checks the exact sizes.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from motet.core.paths import read_regular

MAX_CONFIG_BYTES = 1 << 20
LARGEST = 8 << 30
FP32 = 4


class LoadLimits(msgspec.Struct, frozen=True):
    """Limits on loading. Times are in seconds; counts are per source, except for those of caches.

    `merges_per_minute` limits new merges per caller; `cache_bytes` is --cache-size (None: auto).
    """

    authorisation_seconds: float = 60.0
    stale_seconds: float = 24 * 3600.0
    refresh_wait_seconds: float = 2.0
    retry_seconds: float = 5.0
    unknown_seconds: float = 10.0
    resolve_seconds: float = 30.0
    fetch_seconds: float = 600.0
    prepare_seconds: float = 300.0
    writing_seconds: float = 5.0
    abandoned_seconds: float = 10.0
    slot_seconds: float = 10.0
    watch_seconds: float = 1.0
    stall_seconds: float = 60.0
    stall_bytes: int = 64 << 10
    largest_adapter: int = 8 << 30
    failure_seconds: float = 10.0
    refusal_seconds: float = 300.0
    fetches: int = 4
    preparations: int = 4
    waiting: int = 64
    remembered: int = 1024
    authorisations: int = 8192
    merges_per_minute: int = 30
    cache_bytes: int | None = None


class _Config(msgspec.Struct):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None


def largest_adapter(model: Path, max_rank: int) -> int:
    """Bytes of LoRA pairs at `max_rank` for all linear layers plus a copy of all base weights, fp32; at most 8 GiB.

    Adapter files may include base weights: PEFT saves embeddings, and the weights of some layers, automatically.
    """
    try:
        config = msgspec.json.decode(read_regular(model / "config.json", MAX_CONFIG_BYTES), type=_Config)
    except (OSError, ValueError):
        return LARGEST
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = config.head_dim or hidden // max(config.num_attention_heads, 1)
    heads = head * config.num_attention_heads
    kv_heads = head * (config.num_key_value_heads or config.num_attention_heads)
    pairs = max_rank * (7 * hidden + 2 * heads + 2 * kv_heads + 3 * inner)
    weights = hidden * (2 * heads + 2 * kv_heads + 3 * inner)
    size = FP32 * (layers * (pairs + weights) + 2 * config.vocab_size * hidden) + MAX_CONFIG_BYTES
    return min(size, LARGEST)
