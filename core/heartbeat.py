"""Heartbeats: a child process shows its parent that it responds and, until it is up, what it is doing.

The child writes a file; the parent reads it. Neither looks at the wall clock, so that setting it changes nothing, and
the parent counts only the time during which it ran itself, so that a suspended machine or container changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BEAT_SECONDS = 1.0

SERVING = "serving"
"""The phase of a process that is up; before it, a phase is a few words such as `loading the model`."""

LONGEST_TICK = 1.0
"""Of a longer time between two looks, this much counts: the parent itself was suspended, or was kept from running."""


class Heartbeat:
    """The child's side. With an empty path, nobody watches."""

    def __init__(self, path: str) -> None:
        self.serving = False
        self.phase = "starting"
        self._path = Path(path) if path else None
        self._beaten = 0.0

    def enter(self, phase: str) -> None:
        """Say what this process does from now on."""
        self.phase = phase
        self.serving = phase == SERVING
        if self._path is not None:
            written = self._path.with_name(f"{self._path.name}.new")
            written.write_text(phase)
            written.replace(self._path)

    def beat(self) -> None:
        """Show that this process responds. It writes once per BEAT_SECONDS at most: call it in each turn of a loop."""
        now = time.monotonic()
        if self._path is not None and now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            with suppress(OSError):  # if the directory is gone, this process may still serve
                os.utime(self._path, ns=(time.monotonic_ns(),) * 2)

    async def keep_beating(self) -> None:
        """Beat as long as the event loop turns."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_SECONDS)


class HeartbeatMonitor:
    """The parent's side, for the heartbeat in the file `path`; `clock` is monotonic."""

    def __init__(self, path: Path, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._limit, self._clock = limit_seconds, clock
        self.reset()

    def reset(self) -> None:
        """Forget the process so far: another one is about to start."""
        self.path.unlink(missing_ok=True)
        self.phase = ""
        self._silent = 0.0
        self._last_beat = 0
        self._looked = self._clock()

    @property
    def serving(self) -> bool:
        """Whether the process has been up."""
        return self.phase == SERVING

    @property
    def hung(self) -> bool:
        """Whether the process was up and has not responded for the limit's time."""
        return self.serving and self._silent > self._limit

    def look(self) -> None:
        """Take in what the process shows; to be called several times per second."""
        now = self._clock()
        elapsed, self._looked = min(now - self._looked, LONGEST_TICK), now
        try:
            beat = self.path.stat().st_mtime_ns
            if beat == self._last_beat:
                self._silent += elapsed
                return
            if not self.serving:
                self.phase = self.path.read_text()
        except FileNotFoundError:
            return
        self._last_beat, self._silent = beat, 0.0
