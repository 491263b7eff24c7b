"""One way to log, for every process: loguru to stderr, as text or as JSON lines."""

from __future__ import annotations

import os
import sys

from loguru import logger

VARIABLE = "MOTET_LOG_FORMAT"
"""Child processes learn the format from here, as settings do."""

_TEXT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"


def configure_logging(form: str | None = None) -> None:
    """Log as `form` (`text` or `json`; None: as the environment says). Values of variables are never logged."""
    chosen = form or os.environ.get(VARIABLE, "text")
    os.environ[VARIABLE] = chosen
    logger.remove()
    logger.add(sys.stderr, format=_TEXT, serialize=chosen == "json", diagnose=False, backtrace=False)
