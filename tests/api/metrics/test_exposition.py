"""GET /metrics: requests by route, the engine's gauges, and labels that callers cannot invent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.api_caller import CHAT, MESSAGES, Caller, drive


def test_metrics_count_by_route_and_carry_the_engines_gauges(tmp_path: Path) -> None:
    async def samples(caller: Caller) -> dict[tuple[str, ...], float]:
        response = await caller.client.get("/metrics")
        assert response.content_type.startswith("text/plain")
        text = (await response.get_data()).decode()
        families = text_string_to_metric_families(text)
        return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}

    async def scenario(caller: Caller) -> None:
        before = await samples(caller)
        await caller.answer(CHAT, {"messages": MESSAGES})
        await caller.post(CHAT, {})
        await caller.client.get("/made/up/1")
        await caller.client.get("/made/up/2")
        after = await samples(caller)

        def grown(*key: str) -> float:
            return after.get(key, 0) - before.get(key, 0)

        assert grown("motet_requests_total", *sorted(("POST", CHAT, "200"))) == 1
        assert grown("motet_requests_total", *sorted(("POST", CHAT, "400"))) == 1
        assert grown("motet_requests_total", *sorted(("GET", "other", "404"))) == 2
        assert after[("motet_requests_running",)] == 1  # the one that asks
        assert (after[("motet_engine_up",)], after[("motet_cache_blocks",)]) == (1, 9)
        assert after[("motet_steps_total",)] == 0
        assert not any("made" in part for key in after for part in key)
        caller.api.engine.ready = False
        down = await samples(caller)
        assert down[("motet_engine_up",)] == 0
        assert ("motet_cache_blocks",) not in down

    drive(tmp_path, scenario)


ASK_TWICE = """
import asyncio, sys
from pathlib import Path
from support.api_caller import Caller, drive

async def scenario(caller: Caller) -> None:
    for _ in range(2):
        text = await (await caller.client.get("/metrics")).get_data()
    sys.stdout.buffer.write(text)

drive(Path(sys.argv[1]), scenario)
"""


def test_the_engines_metrics_are_there_once_however_many_api_processes_ask(tmp_path: Path) -> None:
    (tmp_path / "counters").mkdir()
    (tmp_path / "api").mkdir()
    paths = os.pathsep.join((str(Path(__file__).parents[2]), *sys.path))
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counters"), "PYTHONPATH": paths}
    command = [sys.executable, "-c", ASK_TWICE, str(tmp_path / "api")]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert [s.labels for s in samples if s.name == "motet_engine_up"] == [{}]
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 10


def test_requests_cannot_add_arbitrary_label_values(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for n in range(20):
            await caller.client.open(f"/x{n}", method=f"M{n}")
        text = (await (await caller.client.get("/metrics")).get_data()).decode()
        assert 'method="M' not in text

    drive(tmp_path, scenario)
