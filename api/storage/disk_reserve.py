"""Disk space that is kept back, so that deleting works on a full disk: SQLite writes before it frees anything."""

from __future__ import annotations

import os
import time
from pathlib import Path

RESERVE_BYTES = 1 << 20
RENEW_SECONDS = 30.0
"""How long to wait after an attempt to take the space back."""


class DiskReserve:
    """A file that only takes up space; several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tried: float | None = None

    def release(self) -> bool:
        """Give the space back to the disk; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        self._tried = time.monotonic()
        return True

    def renew(self) -> None:
        """Take the space again, if it is not taken and the disk has it."""
        if self._tried is not None and time.monotonic() - self._tried < RENEW_SECONDS:
            return
        self._tried = time.monotonic()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:  # it is there, or the disk is full
            return
        try:
            with open(descriptor, "wb") as file:
                file.write(bytes(RESERVE_BYTES))
        except OSError:
            self._path.unlink(missing_ok=True)
