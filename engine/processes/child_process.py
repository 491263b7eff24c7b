"""Starts, watches, restarts and ends a child process, with a pipe from its parent as stdin. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from loguru import logger

from motet.core.child_processes import REFUSED, ChildStart, refusal
from motet.core.heartbeat import HeartbeatMonitor
from motet.core.settings import HOST_KEY_VARIABLE
from motet.core.startup_failures import ended_at_start

STOP_SECONDS = 0.8
"""How long a process may take to end after SIGTERM before it is killed."""

HANG_SECONDS = 30.0
"""A process without a heartbeat for this long is replaced."""

RESTART_SECONDS = 0.5
"""Time between the end of a process and its restart."""

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MOTET_HUB_TOKEN", HOST_KEY_VARIABLE)
"""Environment variables that the ranks and the loader do not get, because they read foreign files. Of several hosts,
the ranks do get the key of their sockets."""


@dataclass
class WatchedProcess:
    """A process that `launch` starts, and that is restarted when it ends or no longer responds.

    `ended` is called with the process id of a process that has ended. Two starts are at least `interval` seconds apart.
    """

    name: str
    run_directory: Path
    launch: Callable[[ChildStart], subprocess.Popen[bytes]]
    ended: Callable[[int], None] = lambda pid: None
    interval: float = RESTART_SECONDS
    _process: subprocess.Popen[bytes] | None = None
    _served: bool = False
    _started: float = 0.0
    _restart_at: float | None = None

    def __post_init__(self) -> None:
        path = self.run_directory / f"heartbeat-{self.name.replace(' ', '-')}"
        self._heartbeat = HeartbeatMonitor(path, HANG_SECONDS)

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The process, if it has been started."""
        return [] if self._process is None else [self._process]

    def start(self) -> None:
        """Start the process; does not wait for it."""
        self._heartbeat.reset()
        self._process = self.launch(ChildStart(str(self._heartbeat.path), self._served))
        self._started, self._restart_at = time.monotonic(), None

    def tick(self) -> None:
        """Restart the process if it has ended, and end it if it hangs. Raises StartupError if it cannot start."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self.start()
            return
        assert self._process is not None, "it has been started"
        code = self._process.poll()
        self._heartbeat.poll()
        self._served = self._served or self._heartbeat.serving
        if code is not None:
            stop_all(self.processes)  # which closes its stdin
            self._lost(self._process.pid, code)
        elif self._heartbeat.hung:
            logger.error("the {} has not responded for {:g} s; ending it", self.name, HANG_SECONDS)
            self._process.kill()
            self._heartbeat.reset()

    def _lost(self, pid: int, code: int) -> None:
        if code == REFUSED:
            raise refusal(self.name, self.run_directory)
        if not self._served:
            raise ended_at_start(self.name, code, self._heartbeat.phase)
        logger.error("the {} ended with {}; restarting it", self.name, code)
        self.ended(pid)
        self._restart_at = max(time.monotonic() + RESTART_SECONDS, self._started + self.interval)


def start_child(
    module: str,
    spec: msgspec.Struct,
    start: ChildStart,
    *,
    descriptors: tuple[int, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module SPEC START`; the child inherits `descriptors` and ends when its stdin is closed.

    Its environment is `variables`, or that of this process.
    """
    command = [sys.executable, "-m", module, *(msgspec.json.encode(part).decode() for part in (spec, start))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=descriptors, env=variables)


def public_environment() -> dict[str, str]:
    """This process's environment without SECRETS."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def stop_all(processes: list[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM, and SIGKILL to processes that have not ended after STOP_SECONDS; reap all."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
