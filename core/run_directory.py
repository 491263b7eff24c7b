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

MAX_SOCKET_PATH = 107
"""In bytes; the limit of Linux's `sockaddr_un`."""

_LONGEST_SOCKET_NAME = "/ranks-0123456789ab"


class RunDirectory:
    """A new directory, locked while this process runs. First, the directories of killed servers are removed.

    The kernel releases the lock (`flock` on the directory) however the process ends. systemd-tmpfiles respects it, too.
    """

    def __init__(self) -> None:
        """Raises StartupError if there is no usable directory for temporary files."""
        try:
            remove_leftovers()
            self.path, self._lock = _locked_directory()
        except OSError as error:
            raise StartupError(
                f"cannot create a temporary directory: {error}; set TMPDIR to a writable directory"
            ) from error
        longest = len(os.fsencode(self.path)) + len(_LONGEST_SOCKET_NAME)
        if longest > MAX_SOCKET_PATH:
            self.remove()
            raise StartupError(
                f"socket paths in {self.path} would have {longest} bytes; the maximum is {MAX_SOCKET_PATH}; "
                "set TMPDIR to a directory with a shorter path"
            )

    def remove(self) -> None:
        """Remove the directory and release the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def remove_leftovers() -> None:
    """Remove this user's run directories whose servers have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # owned by another user, in use, or just removed by another server
            _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Remove a directory of this user. Raises BlockingIOError if it is locked."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _locked_directory() -> tuple[Path, int]:
    """A new directory and the file descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # another server that is starting removed it before it was locked
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)
