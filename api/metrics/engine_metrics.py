"""Exports the engine's statistics as metrics, including those that Kubernetes' inference gateway reads (`vllm:…`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from motet.core.messages import INSTALL_BUCKETS, AdapterUse, EngineStats

ENGINE_GAUGES = {
    "motet_sequences_running": ("Sequences in the batch", "running"),
    "motet_sequences_waiting": ("Sequences that wait to start", "waiting"),
    "motet_cache_blocks_free": ("Free blocks of the key-value cache", "blocks_free"),
    "motet_cache_blocks": ("Blocks of the key-value cache", "blocks_total"),
    "motet_adapters_resident": ("Adapters on the device", "adapters_resident"),
    "motet_adapters_pinned": ("Adapters that running sequences use", "adapters_pinned"),
    "motet_adapters_resident_bytes": ("Weights of the adapters on the device", "adapter_bytes"),
    "motet_adapter_slots": ("Adapters that fit on the device at once", "adapter_slots"),
}
ENGINE_COUNTERS = {
    "motet_steps": ("Steps since the engine started", "steps"),
    "motet_preemptions": ("Sequences that lost their blocks to others", "preemptions"),
    "motet_adapter_evictions": ("Adapters evicted from the device", "adapter_evictions"),
    "motet_prompt_tokens": ("Tokens of prompts that were computed", "prompt_tokens"),
    "motet_generated_tokens": ("Tokens that were sampled", "generated_tokens"),
}
"""Name -> help text and field of EngineStats. prometheus_client appends `_total` to counters."""

UP = "motet_engine_up"
CACHE_USE = "motet_cache_usage_ratio"
INSTALLS = "motet_adapter_install_seconds"
ROUTING = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
)
"""vLLM's names, which the model server protocol of Kubernetes' Gateway API Inference Extension uses."""


class EngineCollector(Collector):
    """The engine's statistics at one moment; a Gauge would have a separate series for each API process."""

    def __init__(self, stats: EngineStats | None, use: AdapterUse | None) -> None:
        self._stats, self._use = stats, use

    def collect(self) -> Iterator[Metric]:
        """Every family; only `motet_engine_up` while the engine does not respond."""
        stats, use = self._stats, self._use
        yield GaugeMetricFamily(UP, "Whether the engine responds", float(stats is not None))
        if stats is None or use is None:
            return
        for name, (text, field) in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(name, text, getattr(stats, field))
        for name, (text, field) in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(name, text, getattr(stats, field))
        used = 1 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0
        yield GaugeMetricFamily(CACHE_USE, "Share of the key-value cache in use, from 0 to 1", used)
        yield _installs(use)
        yield from _routing(stats, use, used)


def _installs(use: AdapterUse) -> HistogramMetricFamily:
    bounds = (*map(str, INSTALL_BUCKETS), "+Inf")
    counts = itertools.accumulate(use.installs)
    return HistogramMetricFamily(
        INSTALLS,
        "Time to copy an adapter into its slot",
        buckets=list(zip(bounds, counts, strict=True)),
        sum_value=use.install_seconds,
    )


def _routing(stats: EngineStats, use: AdapterUse, cache_use: float) -> Iterator[Metric]:
    running, waiting, cache, config, adapters = ROUTING
    yield GaugeMetricFamily(running, "As motet_sequences_running", stats.running)
    yield GaugeMetricFamily(waiting, "As motet_sequences_waiting", stats.waiting)
    yield GaugeMetricFamily(cache, "As motet_cache_usage_ratio", cache_use)
    facts = {"block_size": str(stats.block_size), "num_gpu_blocks": str(stats.blocks_total)}
    info = InfoMetricFamily(config.removesuffix("_info"), "The key-value cache")
    info.add_metric([], facts)
    yield info
    family = GaugeMetricFamily(
        adapters,
        "When this was read (Unix time), with the adapters on the device and those that requests wait for",
        labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    )
    family.add_metric((str(stats.adapter_slots), ",".join(use.resident), ",".join(use.waiting)), time.time())
    yield family
