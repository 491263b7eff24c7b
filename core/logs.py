"""One way to log, for every process: loguru to stderr, one line per event, as text or as flat JSON.

`logger.bind(request_id=…).info("…")` puts values beside the message: `key=value` in text, fields of their own in JSON.
Prompts, answers, keys and tokens are never logged, and neither are the values of variables.
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
"""Child processes learn format and level from these, as settings do."""

LEVELS = ("debug", "info", "warning", "error")

_TEXT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}<dim>{extra[shown]}</dim>\n{exception}"
_PLAIN = re.compile(r"[^\s\"=\\]+")


def configure_logging(form: str | None = None, level: str | None = None, *, process: str = "motet") -> None:
    """Log as `form` (`text` or `json`) from `level` on; None: as the environment says. `process` names this one."""
    form = os.environ[FORMAT_VARIABLE] = form or os.environ.get(FORMAT_VARIABLE, "text")
    level = os.environ[LEVEL_VARIABLE] = level or os.environ.get(LEVEL_VARIABLE, "info")
    logger.remove()
    logger.configure(extra={"process": process})
    common: dict[str, Any] = {"level": level.upper(), "diagnose": False, "backtrace": False}
    if form == "json":
        logger.add(_write_json, format="{message}", **common)
    else:
        logger.add(sys.stderr, format=_text, **common)
    logging.basicConfig(handlers=[_StandardLogs()], level=logging.WARNING, force=True)


def flat(record: Record) -> dict[str, Any]:
    """A log line as the fields of one JSON object."""
    fields = {key: value for key, value in record["extra"].items() if value is not None and key != "shown"}
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
    # ASCII: what a file or a client calls something may hold half a surrogate pair, which is not UTF-8.
    sys.stderr.write(json.dumps(flat(message.record), default=str) + "\n")


def _text(record: Record) -> str:
    # One event is one line: a message may quote a foreign file or request, whose line ends would look like events.
    record["message"] = record["message"].replace("\r", "\\r").replace("\n", "\\n")
    fields = {k: v for k, v in record["extra"].items() if v is not None and k not in ("process", "shown")}
    record["extra"]["shown"] = "".join(f" {key}={_word(value)}" for key, value in fields.items())
    return _TEXT


def _word(value: Any) -> str:
    """`value` as one word: quoted where it holds spaces or line ends."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


class _StandardLogs(logging.Handler):
    """What libraries log by the standard library, as lines like all others."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname.lower() in (*LEVELS, "critical") else record.levelno
        logger.opt(exception=record.exc_info).bind(logger=record.name).log(level, "{}", record.getMessage())
