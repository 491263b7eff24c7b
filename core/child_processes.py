"""The child's side of child processes: ends with the parent, and reports why the child cannot start.

The parent holds the child's stdin open, and the child watches it.
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
"""The exit code of a process that cannot start as configured: starting it again would not help."""

_REASON = "refused"


class ChildStart(msgspec.Struct, frozen=True):
    """A child's second argument: the file of its heartbeat, in the server's run directory (empty: nobody watches),
    and whether it replaces a process that has been up."""

    heartbeat: str = ""
    restarted: bool = False


def follow_parent() -> None:
    """Exit when the parent goes away, however it went; what a terminal sends to all is the parent's to handle."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def run_child(name: str, work: Callable[[Heartbeat], None]) -> None:
    """Run the child process `name` (such as `engine`): `work`, which enters SERVING once it is up.

    A StartupError ends the process with the code REFUSED and is reported to the parent in one line. So does whatever
    else escapes before the process, or an earlier one in its place, has been up: it would only happen again.
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
    """Exit. Of one server's processes, which may fail alike, the first alone gives the reason."""
    try:
        directory = Path(start.heartbeat).parent
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(error.message.encode(errors="replace"))
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, directory / _REASON)  # whole, and never over an earlier one
    except OSError:
        print(f"motet: {error.message}", file=sys.stderr, flush=True)
    os._exit(REFUSED)


def refusal(name: str, run_directory: Path) -> StartupError:
    """Why the child process `name`, or one before it, ended with the code REFUSED."""
    try:
        return StartupError((run_directory / _REASON).read_text())
    except OSError:
        return StartupError(f"the {name} could not start; its message is above", code=error_codes.ALREADY_REPORTED)
