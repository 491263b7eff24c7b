"""Logs and metrics of adapter loads: each stage, each refusal, and few lines for many failures of one kind."""

from __future__ import annotations

import json
from pathlib import Path

from prometheus_client import REGISTRY
from support.log_lines import log_lines
from support.scripted_registry import RegistrySetup, failure, run

from motet.api.adapters.load_log import MAX_LINES, RateLimit
from motet.core.adapter_source import AdapterRef
from motet.core.errors import AdapterRefused, Unavailable

TOKEN = "hf_secret"


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_load_is_logged_and_timed_by_stage(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish("org/staged")
        before = counted("motet_adapter_load_seconds_count", stage="fetch", source="hub")
        with log_lines() as lines:
            for _ in range(2):
                await s.adapters.serve(AdapterRef("hub", "org/staged"), TOKEN)
        assert [line["message"] for line in lines] == ["adapter fetched", "adapter prepared"]
        assert {(line["adapter"], line["revision"]) for line in lines} == {("hub:org/staged", "r1")}
        assert [line["bytes"] for line in lines] == [len("org/staged r1"), 8]
        assert all(line["seconds"] >= 0 for line in lines)
        assert counted("motet_adapter_load_seconds_count", stage="fetch", source="hub") == before + 1

    run(body)


def test_a_refused_or_failed_load_is_one_line_with_its_cause(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish("org/refused")
        s.loader.error = AdapterRefused("use_dora: DoRA is not supported\nsecond line", param="use_dora")
        labels = {"stage": "prepare", "source": "hub", "cause": "adapter_refused"}
        before = counted("motet_adapter_load_failures_total", **labels)
        with log_lines() as lines:
            for _ in range(3):
                await failure(s.adapters.serve(AdapterRef("hub", "org/refused"), TOKEN))
            await failure(s.adapters.serve(AdapterRef("hub", "org/unknown"), TOKEN))
            s.hub.errors["fetch"] = Unavailable(f"the hub is away for {TOKEN}", code="source_unavailable")
            s.publish("org/away")
            await failure(s.adapters.serve(AdapterRef("hub", "org/away"), TOKEN))
        failed = [line for line in lines if "stage" in line]
        assert [(f["adapter"], f["stage"], f["level"], f["code"]) for f in failed] == [
            ("hub:org/refused", "prepare", "warning", "adapter_refused"),
            ("hub:org/unknown", "resolve", "info", "model_not_found"),
            ("hub:org/away", "fetch", "warning", "source_unavailable"),
        ]
        assert failed[0]["message"] == "adapter load refused: use_dora: DoRA is not supported second line"
        assert failed[0]["param"] == "use_dora"
        assert counted("motet_adapter_load_failures_total", **labels) == before + 1
        assert TOKEN not in json.dumps(lines)

    run(body)


def test_repeated_failures_are_few_lines() -> None:
    limit = RateLimit()
    assert [limit.allows("a", now) for now in (0.0, 1.0, 59.0, 61.0)] == [0, None, None, 2]
    assert sum(limit.allows(f"invented-{n}", 200.0) is not None for n in range(500)) == MAX_LINES
    assert limit.allows("invented-0", 300.0) is not None
