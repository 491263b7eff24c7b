"""Child processes and their end: they do not outlive their parent, and say once, for all, why they cannot start.

The parent holds the child's stdin open, and the child watches it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from motet.core.errors import StartupError


def follow_parent() -> None:
    """Exit when the parent goes away, however it went; what a terminal sends to all is the parent's to handle."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def refuse_to_start(error: StartupError, run_directory: Path) -> NoReturn:
    """Exit with code 2. Of one server's processes, which may fail alike, the first alone says why, in one line."""
    with suppress(OSError):
        (run_directory / "refused").touch(exist_ok=False)
        print(f"motet: {error.message}", file=sys.stderr, flush=True)
    os._exit(2)
