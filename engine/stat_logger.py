"""The engine's statistics: log lines about adapters, a summary line, EngineStats and AdapterUse."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable

from loguru import logger

from motet.core.messages import INSTALL_BUCKETS, AdapterUse, AddRequest, EngineStats
from motet.engine.schedule.plan import ClearSlot, InstallAdapter
from motet.engine.schedule.scheduler import MAX_ADAPTERS, Scheduler

SUMMARY_SECONDS = 30.0
"""Time between two summary lines."""

MAX_NAMES = 4
"""Names that are remembered per adapter: its id and its aliases."""

MAX_LISTED = 512
"""Names in one AdapterUse."""


class StatLogger:
    """Statistics of one scheduler. `prompt_tokens` and `generated_tokens` count those that the engine has computed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.prompt_tokens = self.generated_tokens = 0
        self._scheduler = scheduler
        self._names: dict[str, list[str]] = {}  # fingerprint -> the adapter's names in requests
        self._install_starts: dict[str, float] = {}  # fingerprint -> time
        self._installs = [0] * (len(INSTALL_BUCKETS) + 1)
        self._install_seconds = 0.0
        self._last_summary = (time.monotonic(), 0, 0, 0)  # time, steps, prompt tokens, generated tokens
        self._next_summary = self._last_summary[0] + SUMMARY_SECONDS

    def record_name(self, request: AddRequest) -> None:
        """Remember the request's name for its adapter."""
        if request.adapter is None:
            return
        names = self._names.pop(request.adapter, [])
        self._names[request.adapter] = names  # the last one to be forgotten
        if request.model and request.model not in names:
            names.append(request.model)
            del names[:-MAX_NAMES]
        if len(self._names) > MAX_ADAPTERS:
            del self._names[next(iter(self._names))]

    def record_commands(self, commands: Iterable[InstallAdapter | ClearSlot]) -> None:
        """Note when installations start, and log the adapters that were evicted for them."""
        for command in commands:
            if isinstance(command, InstallAdapter):
                self._install_starts[command.fingerprint] = time.monotonic()
        evicted = self._scheduler.slots.evicted
        for adapter in evicted:
            logger.bind(adapter=adapter.name, generation=adapter.fingerprint[:12]).info("adapter evicted")
        evicted.clear()

    def record_install(self, fingerprint: str, error: str = "") -> None:
        """Log and count an installation that every rank has finished; `error` is not empty if one has failed."""
        seconds = time.monotonic() - self._install_starts.pop(fingerprint)
        resident = self._scheduler.slots.get(fingerprint)
        assert resident is not None, "it is still in its slot"
        line = logger.bind(
            adapter=resident.adapter.name,
            generation=fingerprint[:12],
            slot=resident.slot,
            bytes=resident.adapter.bytes,
            seconds=round(seconds, 4),
        )
        if error:
            line.error("adapter installation failed: {}", error)
            return
        self._installs[bisect_left(INSTALL_BUCKETS, seconds)] += 1
        self._install_seconds += seconds
        line.info("adapter installed")

    def adapter_use(self) -> AdapterUse:
        """The adapters on the device, those in use first, and those that sequences wait for."""
        resident: dict[str, None] = {}
        for adapter in reversed(self._scheduler.slots.residents()):
            resident |= dict.fromkeys(self._names.get(adapter.fingerprint, ()))
        waiting = dict.fromkeys(s.request.model for s in self._scheduler.waiting if s.request.adapter)
        waiting.pop("", None)
        return AdapterUse(
            tuple(resident)[:MAX_LISTED], tuple(waiting)[:MAX_LISTED], tuple(self._installs), self._install_seconds
        )

    def engine_stats(self, num_compiling: int) -> EngineStats:
        """The engine's counters; `num_compiling` requests wait for their grammar."""
        scheduler = self._scheduler
        resident, pinned = scheduler.slots.counts()
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + num_compiling,
            blocks_free=scheduler.blocks.free,
            blocks_total=scheduler.blocks.total,
            adapters_resident=resident,
            adapters_pinned=pinned,
            steps=scheduler.steps,
            preemptions=scheduler.preemptions,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            block_size=scheduler.blocks.block_size,
            adapter_slots=scheduler.slots.total,
            adapter_bytes=sum(adapter.bytes for adapter in scheduler.slots.residents()),
            adapter_evictions=scheduler.slots.evictions,
        )

    def log_summary(self, now: float) -> None:
        """Log a summary of the last SUMMARY_SECONDS when they are over, unless the engine was idle."""
        if now < self._next_summary:
            return
        scheduler = self._scheduler
        last, steps, prompt_tokens, generated_tokens = self._last_summary
        self._last_summary = (now, scheduler.steps, self.prompt_tokens, self.generated_tokens)
        self._next_summary = now + SUMMARY_SECONDS
        if steps == scheduler.steps and not scheduler.waiting:
            return
        resident, pinned = scheduler.slots.counts()
        blocks = scheduler.blocks
        logger.bind(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            prompt_tokens_per_second=round((self.prompt_tokens - prompt_tokens) / (now - last), 1),
            generated_tokens_per_second=round((self.generated_tokens - generated_tokens) / (now - last), 1),
            cache_use=round(1 - blocks.free / blocks.total, 3),
            adapters_resident=resident,
            adapters_in_use=pinned,
            preemptions=scheduler.preemptions,
        ).info("engine summary")
