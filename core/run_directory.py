"""The private temporary directory of a running server: its sockets, heartbeats and counters."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from motet.core.errors import StartupError

PREFIX = "motet-run-"

LONGEST_SOCKET_PATH = 107
"""Bytes, by Linux's `sockaddr_un`."""

_LONGEST_NAME = "/ranks-0123456789ab"


class RunDirectory:
    """A new directory, locked as long as this process lives; what killed servers left behind is removed first.

    The lock (`flock` on the directory) ends with the process, however that ends. systemd-tmpfiles respects it, too.
    """

    def __init__(self) -> None:
        """Raises StartupError where there is no directory for temporary files."""
        try:
            remove_leftovers()
            self.path, self._lock = _locked_directory()
        except OSError as error:
            raise StartupError(
                f"no directory for temporary files: {error}; set TMPDIR to one that can be written"
            ) from error
        longest = len(os.fsencode(self.path)) + len(_LONGEST_NAME)
        if longest > LONGEST_SOCKET_PATH:
            self.remove()
            raise StartupError(
                f"sockets in {self.path} have paths of {longest} bytes, and {LONGEST_SOCKET_PATH} is the maximum; "
                "set TMPDIR to a shorter one"
            )

    def remove(self) -> None:
        """Remove the directory, and end the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def remove_leftovers() -> None:
    """Remove this user's run directories whose servers are dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, in use, or just removed by another server
            _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Remove a directory of this user that nobody has locked. Raises BlockingIOError where somebody has."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _locked_directory() -> tuple[Path, int]:
    """A new directory and the descriptor that locks it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # another server that starts now took it for a leftover
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)
