"""Child processes that do not outlive their parent: the parent holds the child's stdin open, the child watches it."""

from __future__ import annotations

import os
import signal
import sys
import threading


def follow_parent() -> None:
    """Exit when the parent goes away, however it went; ignore Ctrl-C, which the parent handles for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
