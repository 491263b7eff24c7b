"""The settings that the ranks and the loader need, with sizes in bytes. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import msgspec

from motet.core.machine_limits import cpu_count
from motet.core.settings import Settings
from motet.engine.auto_shards import resolve_shards


class EngineConfig(msgspec.Struct, frozen=True):
    """The settings of a rank. With None for a size, the rank derives it from its device and memory.

    `shards` ranks share the model, `local_shards` of them on each host; `threads` are those of one rank.
    """

    directory: str
    device: str
    dtype: str
    quantize: str
    max_context: int
    adapter_slots: int
    adapter_memory: int | None
    max_adapter_rank: int
    kv_memory: int | None
    memory_fraction: float
    max_batch_tokens: int | None
    max_sequences: int
    shards: int
    local_shards: int
    threads: int
    overlap: str
    enforce_eager: bool

    @classmethod
    def from_settings(cls, settings: Settings, directory: Path) -> EngineConfig:
        """The config for `settings` and the model in `directory`; chooses the number of ranks if it is `auto`."""
        shards = resolve_shards(settings, directory)
        local_shards = shards // settings.nnodes
        return cls(
            directory=str(directory),
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
            max_context=settings.max_context,
            adapter_slots=settings.adapter_slots,
            adapter_memory=settings.size("adapter_memory"),
            max_adapter_rank=settings.max_adapter_rank,
            kv_memory=settings.size("kv_memory"),
            memory_fraction=settings.memory_fraction,
            max_batch_tokens=None if settings.max_batch_tokens == "auto" else settings.max_batch_tokens,
            max_sequences=settings.max_sequences,
            shards=shards,
            local_shards=local_shards,
            threads=max(1, (settings.threads or cpu_count()) // local_shards),
            overlap=settings.overlap,
            enforce_eager=settings.enforce_eager == "on",
        )
