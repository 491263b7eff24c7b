"""Heartbeats: which processes hang, which were suspended, and no use of the wall clock."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from motet.core.heartbeat import SERVING, Heartbeat, HeartbeatMonitor

LIMIT = 60.0


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The parent's clock."""
    return Clock()


@pytest.fixture
def child(tmp_path: Path) -> Heartbeat:
    """A child's heartbeat."""
    return Heartbeat(str(tmp_path / "heartbeat"))


@pytest.fixture
def monitor(tmp_path: Path, clock: Clock) -> HeartbeatMonitor:
    """What its parent knows."""
    return HeartbeatMonitor(tmp_path / "heartbeat", LIMIT, clock)


def pass_time(monitor: HeartbeatMonitor, clock: Clock, seconds: float, tick: float = 0.05) -> None:
    """Let the parent look once per tick."""
    for _ in range(round(seconds / tick)):
        clock.now += tick
        monitor.poll()


def test_the_phase_is_seen_and_does_not_count_as_serving(
    monitor: HeartbeatMonitor, child: Heartbeat, clock: Clock
) -> None:
    monitor.poll()
    assert (monitor.phase, monitor.serving) == ("", False)
    child.enter("loading the model")
    monitor.poll()
    assert (monitor.phase, monitor.serving) == ("loading the model", False)
    pass_time(monitor, clock, 10 * LIMIT, 0.5)
    assert not monitor.hung, "loading may take its time"
    child.enter(SERVING)
    monitor.poll()
    assert monitor.serving
    monitor.reset()
    monitor.poll()
    assert (monitor.phase, monitor.serving, monitor.hung) == ("", False, False)


def test_a_silent_process_hangs(monitor: HeartbeatMonitor, child: Heartbeat, clock: Clock) -> None:
    child.enter(SERVING)
    monitor.poll()
    pass_time(monitor, clock, LIMIT - 1)
    assert not monitor.hung
    pass_time(monitor, clock, 2)
    assert monitor.hung


def test_a_beat_starts_the_count_again(
    monitor: HeartbeatMonitor, child: Heartbeat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.enter(SERVING)
    monitor.poll()
    monkeypatch.setattr("motet.core.heartbeat.BEAT_SECONDS", 0.0)
    for _ in range(4):
        pass_time(monitor, clock, LIMIT - 1)
        child.beat()
        monitor.poll()
        assert not monitor.hung


def test_a_suspended_machine_does_not_count_as_hung(monitor: HeartbeatMonitor, child: Heartbeat, clock: Clock) -> None:
    """Also where it is suspended again and again, or the parent wakes first."""
    child.enter(SERVING)
    monitor.poll()
    for _ in range(10):
        clock.now += 3600
        monitor.poll()
        pass_time(monitor, clock, 2)
        assert not monitor.hung
    pass_time(monitor, clock, LIMIT)
    assert monitor.hung, "it did not wake up"


def test_the_wall_clock_changes_nothing(monitor: HeartbeatMonitor, child: Heartbeat, clock: Clock) -> None:
    child.enter(SERVING)
    monitor.poll()
    for when in (0, 2**31):  # as if it had been set back or ahead
        os.utime(monitor.path, (when, when))
        monitor.poll()
        assert not monitor.hung


def test_a_beat_is_written_once_per_second(child: Heartbeat, monitor: HeartbeatMonitor) -> None:
    child.enter(SERVING)
    child.beat()
    first = monitor.path.stat().st_mtime_ns
    child.beat()
    assert monitor.path.stat().st_mtime_ns == first


def test_a_process_continues_without_its_directory(child: Heartbeat, monitor: HeartbeatMonitor, clock: Clock) -> None:
    child.enter(SERVING)
    monitor.poll()
    monitor.path.unlink()
    child.beat()
    pass_time(monitor, clock, 2 * LIMIT)
    assert not monitor.hung


def test_a_heartbeat_without_a_path_writes_no_file() -> None:
    child = Heartbeat("")
    child.enter(SERVING)
    child.beat()
    assert child.serving
