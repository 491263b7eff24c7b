"""Runs a child process: it ends with its parent, and reports to the parent why it cannot start.

The parent keeps the child's stdin open; the child exits when it reads end of file.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec
from loguru import logger

from motet.core import error_codes
from motet.core.errors import StartupError
from motet.core.heartbeat import Heartbeat
from motet.core.startup_failures import startup_failure

REFUSED = 2
"""The exit code of a process that cannot start as configured; a restart would not help."""

_REASON_FILE = "refused"


class ChildStart(msgspec.Struct, frozen=True):
    """A child's second argument: its heartbeat file in the server's run directory (empty: none), and whether it
    replaces a process that was serving."""

    heartbeat: str = ""
    restarted: bool = False


def follow_parent() -> None:
    """Exit when the parent ends, even if it is killed. Ignore a terminal's signals: the parent handles them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watcher", daemon=True).start()


def run_child(name: str, work: Callable[[Heartbeat], None]) -> None:
    """Run `work` as the child process `name` (such as `engine`); `work` enters SERVING when it is ready.

    A StartupError is reported to the parent in one line and ends the process with the exit code REFUSED. So does any
    other exception, unless this process, or the one that it replaces, was serving: a restart would fail again.
    """
    start = msgspec.json.decode(sys.argv[2], type=ChildStart) if len(sys.argv) > 2 else ChildStart()
    heartbeat = Heartbeat(start.heartbeat)
    try:
        work(heartbeat)
    except StartupError as error:
        _refuse(error, start)
    except Exception as error:
        if heartbeat.serving or start.restarted:
            raise
        logger.opt(exception=True).debug("the {} failed to start", name)
        _refuse(startup_failure(error, name, heartbeat.phase), start)


def _refuse(error: StartupError, start: ChildStart) -> NoReturn:
    """Store the reason for the parent, and exit. If several processes of a server fail, the first reason is kept."""
    try:
        directory = Path(start.heartbeat).parent
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(error.message.encode(errors="replace"))
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, directory / _REASON_FILE)  # atomic, and never replaces an earlier reason
    except OSError:
        print(f"motet: {error.message}", file=sys.stderr, flush=True)
    os._exit(REFUSED)


def forget_refusal(run_directory: Path) -> None:
    """Forget an earlier reason, before processes that may start again although one was refused."""
    (run_directory / _REASON_FILE).unlink(missing_ok=True)


def refusal(name: str, run_directory: Path) -> StartupError:
    """The reason why the child process `name`, or an earlier one, ended with the exit code REFUSED."""
    try:
        return StartupError((run_directory / _REASON_FILE).read_text())
    except OSError:
        return StartupError(f"the {name} could not start; its message is above", code=error_codes.ALREADY_REPORTED)
