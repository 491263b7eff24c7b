"""Extracts queries from the dashboard and the alert rules, and the metrics and labels that they use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
DASHBOARD, ALERTS = MONITORING / "grafana-dashboard.json", MONITORING / "alerts.yaml"

_WORDS = "sum by on and or rate increase topk histogram_quantile label_values bool offset ignoring without max min avg"
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Selector:
    """A metric, the labels that a query matches, and their literal values."""

    metric: str
    labels: frozenset[str]
    values: tuple[tuple[str, str], ...]


def queries() -> dict[str, str]:
    """Every query, by the name of its panel or alert."""
    panels = json.loads(DASHBOARD.read_bytes())["panels"]
    panel_queries = {f"{panel['title']} {t['refId']}": t["expr"] for panel in panels for t in panel.get("targets", ())}
    rules = [rule for group in yaml.safe_load(ALERTS.read_bytes())["groups"] for rule in group["rules"]]
    return panel_queries | {rule["alert"]: rule["expr"] for rule in rules}


def selectors(query: str) -> Iterator[Selector]:
    """The metrics that `query` reads."""
    text = _GROUPING.sub(" ", re.sub(r"\[[^\]]*\]", " ", query))
    for match in _SELECTOR.finditer(text):
        name, matchers = match.groups()
        if name in _WORDS.split() or (matchers is None and "_" not in name and name != "up"):
            continue
        matched = re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', matchers or "")
        values = tuple((label, value) for label, operator, value in matched if operator == "=")
        yield Selector(name, frozenset(label for label, _, _ in matched), values)


def grouped(query: str) -> set[str]:
    """The labels by which `query` groups."""
    return {label.strip() for group in _GROUPING.findall(query) for label in group.split(",")}
