"""Log lines in both formats: one line per event, flat fields, levels, and what libraries log."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LINES = """
import logging, sys
from loguru import logger
from motet.core.logs import configure_logging

configure_logging(sys.argv[1], sys.argv[2], process="api-0")
logger.bind(request_id="r 1", seconds=0.5, nothing=None).info("request")
logger.bind(reason="a\\nb\\ud800").debug("a {field} in braces <red>\\n12:00:00 INFO    forged")
logging.getLogger("library").warning("said by %s", "a library")
try:
    secret = "hunter2"
    1 / 0
except ZeroDivisionError:
    logger.exception("it failed")
"""


def written(form: str, level: str) -> list[str]:
    """What a process logs on stderr."""
    command = [sys.executable, "-c", LINES, form, level]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()


def test_json_lines_are_flat_objects() -> None:
    lines = [json.loads(line) for line in written("json", "debug")]
    first, second, third, fourth = lines
    assert first.pop("time")
    assert first == {"level": "info", "message": "request", "process": "api-0", "request_id": "r 1", "seconds": 0.5}
    assert second["message"] == "a {field} in braces <red>\n12:00:00 INFO    forged"
    assert second["reason"] == "a\nb\ud800"
    assert (third["level"], third["message"], third["logger"]) == ("warning", "said by a library", "library")
    assert "ZeroDivisionError" in fourth["exception"]
    assert "hunter2" not in json.dumps(lines)


def test_text_lines_show_fields_behind_the_message() -> None:
    lines = written("text", "debug")
    assert lines[0].endswith('INFO    request request_id="r 1" seconds=0.5')
    assert lines[1].endswith('DEBUG   a {field} in braces <red>\\n12:00:00 INFO    forged reason="a\\nb\\ud800"')


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_decides_what_is_written(level: str, count: int) -> None:
    assert len(written("json", level)) == count
