"""Reserves disk space, so that deleting works on a full disk: SQLite writes before it frees space."""

from __future__ import annotations

import os
import time
from pathlib import Path

RESERVE_BYTES = 1 << 20
RENEW_SECONDS = 30.0
"""Seconds between attempts to reserve the space again."""


class DiskReserve:
    """A file that only occupies space; several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_attempt: float | None = None

    def release(self) -> bool:
        """Free the space; returns whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        self._last_attempt = time.monotonic()
        return True

    def renew(self) -> None:
        """Reserve the space again, if it is not reserved and the disk has room."""
        if self._last_attempt is not None and time.monotonic() - self._last_attempt < RENEW_SECONDS:
            return
        self._last_attempt = time.monotonic()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:  # it exists, or the disk is full
            return
        try:
            with open(descriptor, "wb") as file:
                file.write(bytes(RESERVE_BYTES))
        except OSError:
            self._path.unlink(missing_ok=True)
