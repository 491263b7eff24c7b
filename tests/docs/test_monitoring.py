"""The Grafana dashboard and the alert rules use metrics and labels that a server exposes after some requests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from docs.pages import ROOT
from prometheus_client.parser import text_string_to_metric_families
from support.promql import DASHBOARD, grouped, queries, selectors

TARGET_LABELS = {"instance", "job"}
"""Labels that Prometheus adds."""

SCRAPED = """
import sys
from pathlib import Path
from support.api_caller import CHAT, MESSAGES, Caller, drive
import motet.api.worker

async def scenario(caller: Caller) -> None:
    for stream in (False, True):
        await (await caller.post(CHAT, {"messages": MESSAGES, "model": "shelf:one", "stream": stream})).get_data()
    for model in ("shelf:broken", "shelf:nobody"):
        await caller.post(CHAT, {"messages": MESSAGES, "model": model})
    caller.api.engine.fail_after = 0
    await caller.post(CHAT, {"messages": MESSAGES})
    sys.stdout.buffer.write(await (await caller.client.get("/metrics")).get_data())

drive(Path(sys.argv[1]), scenario)
"""


@pytest.fixture(scope="module", params=["one process", "several"])
def exposition(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, str]]]:
    """Sample name to the labels of its series after some answers, for one API process and for several."""
    root = tmp_path_factory.mktemp("scraped")
    (root / "api").mkdir()
    (root / "counters").mkdir()
    paths = os.pathsep.join((str(ROOT / "tests"), *sys.path))
    environment = {**os.environ, "PYTHONPATH": paths}
    if request.param == "several":
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(root / "counters")
    command = [sys.executable, "-c", SCRAPED, str(root / "api")]
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    samples: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
    return samples


def test_every_query_reads_exposed_metrics(exposition: dict[str, list[dict[str, str]]]) -> None:
    wrong = []
    for name, query in queries().items():
        read_by = list(selectors(query))
        assert read_by, name
        labels: set[str] = set(TARGET_LABELS)
        for selector in read_by:
            series = exposition.get(selector.metric)
            if series is None:
                wrong.append(f"{name}: {selector.metric} is not exposed")
                continue
            known = {label for labels in series for label in labels} | TARGET_LABELS
            labels |= known
            wrong += [f"{name}: {selector.metric} has no label {label}" for label in selector.labels - known]
            wrong += [
                f"{name}: {selector.metric} never has {label}={value!r}"
                for label, value in selector.values
                if label not in TARGET_LABELS and not any(labels.get(label) == value for labels in series)
            ]
        wrong += [f"{name}: nothing has the label {label}" for label in grouped(query) - labels]
    assert wrong == []


def test_the_checks_detect_unknown_metrics_and_labels(exposition: dict[str, list[dict[str, str]]]) -> None:
    query = 'sum by (adaptor) (rate(motet_requests_sum{statuss="200"}[5m])) / motet_engine_up{x=~"$y"}'
    assert [(s.metric, set(s.labels)) for s in selectors(query)] == [
        ("motet_requests_sum", {"statuss"}),
        ("motet_engine_up", {"x"}),
    ]
    assert grouped(query) == {"adaptor"}
    assert "motet_requests_sum" not in exposition
    assert "motet_engine_up" in exposition


def test_counters_use_rate_and_histograms_use_buckets(exposition: dict[str, list[dict[str, str]]]) -> None:
    for name, query in queries().items():
        for selector in selectors(query):
            if selector.metric.endswith(("_total", "_bucket")):
                assert f"rate({selector.metric}" in query.replace("\n", "").replace("( ", "(") or (
                    f"increase({selector.metric}" in query.replace(" ", "")
                ), name
        if "histogram_quantile" in query:
            assert "le" in grouped(query), name
    assert DASHBOARD.stat().st_size < 100_000


def test_no_alert_counts_probes_as_requests() -> None:
    """A probe is a GET, and answers 503 while a model loads."""
    alert = next(query for name, query in queries().items() if "MotetServerErrors" in name)
    assert alert.count("motet_requests_total{") == 2
    assert alert.count('motet_requests_total{method="POST"') == 2
