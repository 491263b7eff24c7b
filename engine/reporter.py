"""What rank 0 reports: log lines about adapters, which of them are used, and a summary while anything runs."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable

from loguru import logger

from motet.core.messages import INSTALL_BUCKETS, AdapterUse, AddRequest
from motet.engine.schedule.plan import ClearSlot, InstallAdapter
from motet.engine.schedule.scheduler import MAX_ADAPTERS, Scheduler

SUMMARY_SECONDS = 30.0

MAX_NAMES = 4
"""Names per adapter that are remembered: its id and its aliases."""

MAX_LISTED = 512
"""Names in one AdapterUse."""


class Reporter:
    """Watches one scheduler. Everything here is per request or rarer, never per token."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._names: dict[str, list[str]] = {}  # fingerprint -> what requests call it
        self._installing: dict[str, float] = {}  # fingerprint -> when that began
        self._installs = [0] * (len(INSTALL_BUCKETS) + 1)
        self._install_seconds = 0.0
        self._last = (time.monotonic(), 0, 0, 0)  # time, steps, prompt tokens, generated tokens
        self._next = self._last[0] + SUMMARY_SECONDS

    def request(self, request: AddRequest) -> None:
        """Remember what a request calls its adapter."""
        if request.adapter is None:
            return
        names = self._names.pop(request.adapter, [])
        self._names[request.adapter] = names  # last in line to be forgotten
        if request.model and request.model not in names:
            names.append(request.model)
            del names[:-MAX_NAMES]
        if len(self._names) > MAX_ADAPTERS:
            del self._names[next(iter(self._names))]

    def moves(self, commands: Iterable[InstallAdapter | ClearSlot]) -> None:
        """Adapters begin to move: note when, and log which ones had to go."""
        for command in commands:
            if isinstance(command, InstallAdapter):
                self._installing[command.fingerprint] = time.monotonic()
        evicted = self._scheduler.slots.evicted
        for adapter in evicted:
            logger.bind(adapter=adapter.name, generation=adapter.fingerprint[:12]).info("adapter evicted")
        evicted.clear()

    def installed(self, fingerprint: str, error: str = "") -> None:
        """Every rank has reported an installation; `error` says why it failed on one, if it did."""
        seconds = time.monotonic() - self._installing.pop(fingerprint)
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
        """Which adapters are on the device, and which are waited for."""
        resident: dict[str, None] = {}
        for adapter in reversed(self._scheduler.slots.residents()):
            resident |= dict.fromkeys(self._names.get(adapter.fingerprint, ()))
        waiting = dict.fromkeys(s.request.model for s in self._scheduler.waiting if s.request.adapter)
        waiting.pop("", None)
        return AdapterUse(
            tuple(resident)[:MAX_LISTED], tuple(waiting)[:MAX_LISTED], tuple(self._installs), self._install_seconds
        )

    def summary(self, now: float, prompt_tokens: int, generated_tokens: int) -> None:
        """Log what the engine did in the last SUMMARY_SECONDS, once they are over, if it did anything."""
        if now < self._next:
            return
        scheduler = self._scheduler
        since, steps, prompt, generated = self._last
        self._last = (now, scheduler.steps, prompt_tokens, generated_tokens)
        self._next = now + SUMMARY_SECONDS
        if steps == scheduler.steps and not scheduler.waiting:
            return
        resident, pinned = scheduler.slots.counts()
        blocks = scheduler.blocks
        logger.bind(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            prompt_tokens_per_second=round((prompt_tokens - prompt) / (now - since), 1),
            generated_tokens_per_second=round((generated_tokens - generated) / (now - since), 1),
            cache_use=round(1 - blocks.free / blocks.total, 3),
            adapters_resident=resident,
            adapters_in_use=pinned,
            preemptions=scheduler.preemptions,
        ).info("engine summary")
