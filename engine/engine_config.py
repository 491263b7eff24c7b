"""What the ranks have to know of the settings, as plain data. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import msgspec

from motet.core.machine import cpu_count
from motet.core.settings import Settings


class EngineConfig(msgspec.Struct, frozen=True):
    """What a rank has to know of the settings, with sizes in bytes (None: decide here)."""

    directory: str
    device: str
    dtype: str
    max_context: int
    adapter_slots: int
    adapter_memory: int | None
    max_adapter_rank: int
    kv_memory: int | None
    batch_tokens: int
    sequences: int
    threads: int


def engine_config_of(settings: Settings, directory: Path) -> EngineConfig:
    """The spec for `settings` and the model in `directory`."""
    return EngineConfig(
        directory=str(directory),
        device=settings.device,
        dtype=settings.dtype,
        max_context=settings.max_context,
        adapter_slots=settings.adapter_slots,
        adapter_memory=settings.size("adapter_memory"),
        max_adapter_rank=settings.max_adapter_rank,
        kv_memory=settings.size("kv_memory"),
        batch_tokens=settings.max_batch_tokens,
        sequences=settings.max_sequences,
        threads=max(1, (settings.threads or cpu_count()) // settings.shards),
    )
