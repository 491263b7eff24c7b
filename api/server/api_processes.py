"""Starts and watches the API processes: the workers, and for several workers the adapter registry. Imports no Quart.

The supervisor calls `start`, then `tick` about 20 times per second, and at the end `drain` and `stop`.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import msgspec

from motet.core.child_processes import ChildStart
from motet.core.deployment import Deployment
from motet.core.settings import HOST_KEY_VARIABLE
from motet.engine.processes.child_process import WatchedProcess, start_child, stop_all

TICK_SECONDS = 0.05

COUNTERS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory for the workers' shared counters; prometheus_client reads it when it is imported."""

ERROR_EVENT_SECONDS = 1.0
"""Time that the workers have after the drain to send the last errors and exit."""


class ApiProcesses:
    """`deployment.workers` workers on one listening socket, and their registry."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._run_directory = Path(deployment.run_directory)
        self._counters = self._run_directory / "counters"
        self._variables = dict(os.environ)
        self._variables.pop(HOST_KEY_VARIABLE, None)  # for the supervisor and the ranks only
        several = deployment.workers > 1
        if several:
            self._counters.mkdir()
            self._variables[COUNTERS] = str(self._counters)
        registry = WatchedProcess("adapter registry", self._run_directory, self._launch_registry)
        self._registry = [registry] if several else []
        self._workers = [
            WatchedProcess(
                f"API worker {index}" if several else "API worker",
                self._run_directory,
                partial(self._launch_worker, index),
                self._forget_gauges,
            )
            for index in range(deployment.workers)
        ]

    def _launch_worker(self, index: int, start: ChildStart) -> subprocess.Popen[bytes]:
        announce = index == 0 and not start.restarted
        deployment = msgspec.structs.replace(self._deployment, index=index, announce=announce)
        return start_child(
            "motet.api.worker", deployment, start, descriptors=(deployment.socket,), variables=self._variables
        )

    def _launch_registry(self, start: ChildStart) -> subprocess.Popen[bytes]:
        return start_child("motet.api.adapters.registry_process", self._deployment, start, variables=self._variables)

    def _forget_gauges(self, pid: int) -> None:
        """Remove the gauges of a worker that exited; its counters stay."""
        for path in self._counters.glob(f"gauge_live*_{pid}.db"):
            path.unlink()

    def start(self) -> None:
        """Start all processes without waiting for them."""
        for child in (*self._registry, *self._workers):
            child.start()

    def tick(self) -> None:
        """Restart processes that exited or hang. Raises StartupError if one cannot start."""
        for child in (*self._registry, *self._workers):
            child.tick()

    def drain(self, seconds: float, interrupted: threading.Event) -> None:
        """Let the workers finish their requests; a second Ctrl-C (`interrupted`) kills them."""
        workers = [process for child in self._workers for process in child.processes]
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + seconds + ERROR_EVENT_SECONDS
        while any(worker.poll() is None for worker in workers):
            if time.monotonic() >= deadline or interrupted.wait(TICK_SECONDS):
                break
        for worker in workers:
            if worker.poll() is None:
                worker.kill()

    def stop(self) -> None:
        """Stop the processes that still run."""
        stop_all([process for child in (*self._workers, *self._registry) for process in child.processes])
