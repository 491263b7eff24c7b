"""Copies prepared adapters into the pools in a thread, while steps run.

The thread alone waits for the device, so on CUDA too nothing between `start` and `finish` blocks the step loop.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from loguru import logger
from safetensors.torch import load

from motet.core.digests import digest
from motet.engine.distributed.shipped_files import HEADER_BYTES, ShippedFiles
from motet.engine.lora.pool import LoraPool
from motet.engine.schedule.plan import InstallAdapter, InstallResult

REMEMBERED = 4096
"""Checked files to remember."""


class Installer:
    """One rank's installations. `start` from the step loop, `finish` between steps."""

    def __init__(self, pool: LoraPool, tp_rank: int, shipped: ShippedFiles | None = None) -> None:
        """`shipped` fetches files that only the first host has."""
        self._pool, self._tp_rank, self._shipped = pool, tp_rank, shipped
        self._done: queue.SimpleQueue[tuple[InstallAdapter, str]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="install")
        self._intact: dict[Path, tuple[int, int, int]] = {}  # files with the right digest: inode, mtime, size
        self.running = 0

    def start(self, install: InstallAdapter) -> None:
        """Begin copying. No other slot refers to the slot's pages."""
        self._pool.clear(install.slot)
        self.running += 1
        self._threads.submit(self._copy, install)

    def finish(self) -> list[InstallResult]:
        """Point the slots of finished copies at their pages; returns a result for each."""
        reports = []
        while not self._done.empty():
            install, error = self._done.get()
            self.running -= 1
            if not error:
                error = _attempt(functools.partial(self._pool.point, install))
            reports.append(InstallResult(self._tp_rank, install.slot, install.fingerprint, error))
        return reports

    def _copy(self, install: InstallAdapter) -> None:
        path = Path(install.files[self._tp_rank])

        def work() -> None:
            nonlocal path
            if self._shipped is not None and install.digests:
                path = self._shipped.locate(path, install.digests[self._tp_rank], self._pool.nbytes + HEADER_BYTES)
            self._pool.copy(install, load(self._read(path, install)))

        error = _attempt(work)
        if error:  # then the next request prepares it again
            with suppress(OSError):
                path.unlink()
        self._done.put((install, error))

    def _read(self, path: Path, install: InstallAdapter) -> bytes:
        """The rank's file. Raises ValueError if it is damaged; the digest is checked again if the file changes."""
        # Read, not mapped: a file that shrinks under a mapping would kill the process.
        data = path.read_bytes()
        if install.digests:
            state = path.stat()
            identity = (state.st_ino, state.st_mtime_ns, state.st_size)
            if self._intact.get(path) != identity and digest(data) != install.digests[self._tp_rank]:
                raise ValueError(f"{path} is damaged")
            self._intact[path] = identity
            while len(self._intact) > REMEMBERED:
                del self._intact[next(iter(self._intact))]
        return data


def _attempt(work: Callable[[], None]) -> str:
    """Call `work`; returns the exception's name, or "" if there is none. A failure concerns one adapter only."""
    try:
        work()
    except Exception as failure:
        logger.exception("installing an adapter failed")
        return type(failure).__name__
    return ""
