"""A pytest plugin for the openai package's own tests: writes what each test met to the file MOTET_REPORT names.

Before each test it puts back the objects whose ids those tests have built in, in the database MOTET_SEEDS names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from seeds import seed

_met: dict[str, set[str]] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    seed(Path(os.environ["MOTET_SEEDS"]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if report.when == "call" or report.failed:
        name = f"{item.path.parent.name}/{item.path.name}::{getattr(item, 'originalname', item.name)}"
        _met.setdefault(name, set()).add(_outcome(report, call))
    return report


def _outcome(report: Any, call: pytest.CallInfo[None]) -> str:
    if report.passed:
        return "passed"
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, openai.APIStatusError):
        return f"{error.status_code} {error.code} {error.param}"
    return report.outcome if report.skipped else f"{type(error).__name__}: {str(error)[:300]}"


def pytest_sessionfinish() -> None:
    report = {name: " or ".join(sorted(met)) for name, met in sorted(_met.items())}
    Path(os.environ["MOTET_REPORT"]).write_text(json.dumps(report, indent=2))
