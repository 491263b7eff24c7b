"""The API's processes: the workers, and the adapter registry where there are several. Imports no Quart.

The supervisor keeps them alive with it: `start`, then `tick` some twenty times a second; at the end `drain`, `stop`.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from loguru import logger

from motet.api.deployment import Deployment
from motet.core.errors import ALREADY_SAID, StartupError
from motet.engine.processes import start_child, stop_all

TICK_SECONDS = 0.05

COUNTERS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory in which several workers count together; prometheus_client reads it when it is imported."""

RESTART_SECONDS = 0.5
"""Between the end of a process and its next start, so that one which dies at once does not spin."""

ERROR_EVENT_SECONDS = 1.0
"""After the drain, how long the workers may take to send the last errors and leave."""


@dataclass
class _Child:
    """One process and how to start it again; `variables` are added to its environment."""

    name: str
    module: str
    deployment: Deployment
    variables: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    _restart_at: float | None = None

    def start(self) -> None:
        descriptors = (self.deployment.socket,) if self.module.endswith("worker") else ()
        self.process = start_child(self.module, self.deployment, descriptors, variables=self.variables)
        self._restart_at = None

    def tick(self) -> None:
        """Start it again if it has ended. Raises StartupError if it cannot start as configured."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self.start()
        elif self.process.poll() is not None:
            if self.process.returncode == 2:
                raise StartupError(f"the {self.name} could not start; its message is above", code=ALREADY_SAID)
            logger.error("the {} ended with {}; starting it again", self.name, self.process.returncode)
            self._forget_gauges()
            self.deployment = msgspec.structs.replace(self.deployment, announce=False)
            self._restart_at = time.monotonic() + RESTART_SECONDS

    def _forget_gauges(self) -> None:
        """What a dead worker had open is over; what it counted stays counted."""
        for directory in self.variables.values():
            for path in Path(directory).glob(f"gauge_live*_{self.process.pid}.db"):
                path.unlink()


class ApiProcesses:
    """`deployment.workers` workers on one listening socket, and their registry."""

    def __init__(self, deployment: Deployment) -> None:
        self._workers = []
        variables = {}
        if deployment.workers > 1:
            counters = Path(deployment.run_directory) / "counters"
            counters.mkdir()
            variables[COUNTERS] = str(counters)
        for index in range(deployment.workers):
            name = "API worker" if deployment.workers == 1 else f"API worker {index}"
            own = msgspec.structs.replace(deployment, index=index, announce=index == 0)
            self._workers.append(_Child(name, "motet.api.worker", own, variables))
        shared = [_Child("adapter registry", "motet.api.adapters.process", deployment, variables)]
        self._registry = shared if deployment.workers > 1 else []

    def start(self) -> None:
        """Start them all; does not wait for them."""
        for child in (*self._registry, *self._workers):
            child.start()

    def tick(self) -> None:
        """Start again what has ended. Raises StartupError if one says that it cannot start (exit code 2)."""
        for child in (*self._registry, *self._workers):
            child.tick()

    def drain(self, seconds: float, impatient: threading.Event) -> None:
        """Let the workers finish their requests; a second Ctrl-C ends the patience."""
        workers = [child.process for child in self._workers]
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + seconds + ERROR_EVENT_SECONDS
        while any(worker.poll() is None for worker in workers):
            if time.monotonic() >= deadline or impatient.wait(TICK_SECONDS):
                break
        for worker in workers:
            if worker.poll() is None:
                worker.kill()

    def stop(self) -> None:
        """End what still runs."""
        stop_all([child.process for child in (*self._workers, *self._registry)])
