"""Configures logging in every process: loguru writes one line per event to stderr, as text or as flat JSON.

`logger.bind(request_id=…).info("…")` adds fields: `key=value` after the message in text, separate keys in JSON.
Prompts, answers, API keys, tokens and the values of variables in tracebacks are never logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message, Record

FORMAT_VARIABLE = "MOTET_LOG_FORMAT"
LEVEL_VARIABLE = "MOTET_LOG_LEVEL"
"""Child processes inherit the format and the level in these environment variables."""

LEVELS = ("debug", "info", "warning", "error")

_TEXT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}<dim>{extra[fields]}</dim>\n{exception}"
_UNQUOTED = re.compile(r"[^\s\"=\\]+")


def configure_logging(log_format: str | None = None, level: str | None = None, *, process: str = "motet") -> None:
    """Log as `log_format` (`text` or `json`) from `level` on; None reads the environment. `process` is our name."""
    log_format = os.environ[FORMAT_VARIABLE] = log_format or os.environ.get(FORMAT_VARIABLE, "text")
    level = os.environ[LEVEL_VARIABLE] = level or os.environ.get(LEVEL_VARIABLE, "info")
    logger.remove()
    logger.configure(extra={"process": process})
    common: dict[str, Any] = {"level": level.upper(), "diagnose": False, "backtrace": False}
    if log_format == "json":
        logger.add(_write_json, format="{message}", **common)
    else:
        logger.add(sys.stderr, format=_text_format, **common)
    logging.basicConfig(handlers=[_StandardLogs()], level=logging.WARNING, force=True)


def json_fields(record: Record) -> dict[str, Any]:
    """The fields of a log line's JSON object."""
    fields = {key: value for key, value in record["extra"].items() if value is not None and key != "fields"}
    line = {
        "time": record["time"].isoformat(),
        "level": record["level"].name.lower(),
        "message": record["message"],
        "process": fields.pop("process", "motet"),
    }
    if (failure := record["exception"]) is not None and failure.type is not None:
        line["exception"] = "".join(traceback.format_exception(failure.type, failure.value, failure.traceback))
    return {**line, **{key: value for key, value in fields.items() if key not in line}}


def _write_json(message: Message) -> None:
    # json.dumps escapes to ASCII: names from files and clients may hold lone surrogates, which UTF-8 cannot encode.
    sys.stderr.write(json.dumps(json_fields(message.record), default=str) + "\n")


def _text_format(record: Record) -> str:
    # One event is one line: line breaks that a message quotes from a file or request must not look like new events.
    record["message"] = record["message"].replace("\r", "\\r").replace("\n", "\\n")
    fields = {k: v for k, v in record["extra"].items() if v is not None and k not in ("process", "fields")}
    record["extra"]["fields"] = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
    return _TEXT


def _quoted(value: Any) -> str:
    """`value` as text, in quotes if it contains spaces, line breaks or the like."""
    text = str(value)
    return text if _UNQUOTED.fullmatch(text) and text.isprintable() else json.dumps(text)


class _StandardLogs(logging.Handler):
    """Forwards records of the standard library's `logging` to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname.lower() in (*LEVELS, "critical") else record.levelno
        logger.opt(exception=record.exc_info).bind(logger=record.name).log(level, "{}", record.getMessage())
