"""Collects log lines, as fields of the JSON format, while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loguru import logger

from motet.core.logs import json_fields


@contextmanager
def log_lines(level: str = "INFO") -> Iterator[list[dict[str, Any]]]:
    """The fields of lines of at least `level` that are logged inside the block."""
    lines: list[dict[str, Any]] = []
    handler = logger.add(lambda message: lines.append(json_fields(message.record)), level=level, format="{message}")
    try:
        yield lines
    finally:
        logger.remove(handler)
