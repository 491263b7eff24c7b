"""Heartbeats: a child process shows its parent that it responds and, during startup, its current phase.

The child writes a file and the parent reads it. Both use monotonic clocks, so that a change of the wall clock has no
effect. The parent counts only the time during which it ran itself, so that a suspended machine causes no time-out.
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
"""The phase of a process that is ready; earlier phases are short descriptions such as `loading the model`."""

MAX_TICK_SECONDS = 1.0
"""A longer time between two polls counts as this much: the parent itself was suspended or not scheduled."""


class Heartbeat:
    """The child's side. With an empty path, it writes no file."""

    def __init__(self, path: str) -> None:
        self.serving = False
        self.phase = "starting"
        self._path = Path(path) if path else None
        self._last_beat_time = 0.0

    def enter(self, phase: str) -> None:
        """Set the phase, and write it to the file."""
        self.phase = phase
        self.serving = phase == SERVING
        if self._path is not None:
            written = self._path.with_name(f"{self._path.name}.new")
            written.write_text(phase)
            written.replace(self._path)

    def beat(self) -> None:
        """Show that this process responds. Call it in each iteration of a loop; it writes once per BEAT_SECONDS."""
        now = time.monotonic()
        if self._path is not None and now - self._last_beat_time >= BEAT_SECONDS:
            self._last_beat_time = now
            with suppress(OSError):  # without the directory, this process can still serve
                os.utime(self._path, ns=(time.monotonic_ns(),) * 2)

    async def keep_beating(self) -> None:
        """Call `beat` regularly while the event loop runs."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_SECONDS)


class HeartbeatMonitor:
    """The parent's side: watches the heartbeat file `path`; `clock` is monotonic."""

    def __init__(self, path: Path, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._limit, self._clock = limit_seconds, clock
        self.reset()

    def reset(self) -> None:
        """Reset the state for a new process."""
        self.path.unlink(missing_ok=True)
        self.phase = ""
        self._silent_seconds = 0.0
        self._last_beat = 0
        self._last_poll = self._clock()

    @property
    def serving(self) -> bool:
        """Whether the process has become ready."""
        return self.phase == SERVING

    @property
    def hung(self) -> bool:
        """Whether the process was ready and has not responded for `limit_seconds`."""
        return self.serving and self._silent_seconds > self._limit

    def poll(self) -> None:
        """Read the heartbeat file. Call it several times per second."""
        now = self._clock()
        elapsed, self._last_poll = min(now - self._last_poll, MAX_TICK_SECONDS), now
        try:
            beat = self.path.stat().st_mtime_ns
            if beat == self._last_beat:
                self._silent_seconds += elapsed
                return
            if not self.serving:
                self.phase = self.path.read_text()
        except FileNotFoundError:
            return
        self._last_beat, self._silent_seconds = beat, 0.0
