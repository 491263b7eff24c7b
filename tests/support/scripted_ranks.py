"""Child processes that run short scripts in place of ranks, for tests of what watches them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from motet.core.child_processes import ChildStart

PRELUDE = """
import os, signal, sys, time
from motet.core.errors import StartupError
from motet.core.heartbeat import SERVING
from motet.core.child_processes import follow_parent, run_child
from motet.core.logs import configure_logging

follow_parent()
configure_logging()

def serve(heartbeat, seconds):
    heartbeat.enter(SERVING)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        heartbeat.beat()
        time.sleep(0.05)

def work(heartbeat):
    heartbeat.enter("loading the model")
"""
END = "\nrun_child('engine', work)\n"
SERVE = "    serve(heartbeat, 600)"
WAITS = "    time.sleep(600)"
NO_MEMORY = "    raise MemoryError"
KILLED = "    os.kill(os.getpid(), signal.SIGKILL)"
REFUSES = "    raise StartupError('--dtype is wrong')"
DIES_LATER = "    serve(heartbeat, 0.2)\n    raise RuntimeError('bad luck')"


@dataclass
class Launcher:
    """Starts the next script of `bodies` (the last one repeatedly), in place of `start_child`."""

    bodies: list[str]
    starts: list[ChildStart] = field(default_factory=list)

    def __call__(self, start: ChildStart) -> subprocess.Popen[bytes]:
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        self.starts.append(start)
        script = [sys.executable, "-c", PRELUDE + body + END, "{}", msgspec.json.encode(start).decode()]
        return subprocess.Popen(script, stdin=subprocess.PIPE)


def tick_until(tick: Callable[[], None], done: Callable[[], Any], seconds: float = 30.0) -> None:
    """Tick as the supervisor does."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "the condition was not reached"
        tick()
        time.sleep(0.02)
