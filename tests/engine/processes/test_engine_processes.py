"""Watching child processes: which are restarted, which end the server, and replacing those that hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from support.scripted_ranks import DIES_LATER, KILLED, NO_MEMORY, REFUSES, SERVE, WAITS, Launcher, tick_until

from motet.core.child_processes import ChildStart
from motet.core.errors import StartupError
from motet.core.messages import EngineState
from motet.core.settings import Settings
from motet.engine.engine_config import EngineConfig
from motet.engine.processes import child_process, engine_processes
from motet.engine.processes.child_process import WatchedProcess, stop_all
from motet.engine.processes.engine_processes import EngineProcesses


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., EngineProcesses]]:
    """Makes engines whose ranks are scripts."""
    made: list[EngineProcesses] = []

    def make(ranks: Launcher, shards: int = 1) -> EngineProcesses:
        loader = Launcher([SERVE])

        def start(module: str, spec: msgspec.Struct, start: ChildStart, **_: Any) -> subprocess.Popen[bytes]:
            return (loader if module.endswith("loader") else ranks)(start)

        monkeypatch.setattr(engine_processes, "start_child", start)
        made.append(EngineProcesses(EngineConfig.from_settings(Settings(shards=shards), tmp_path), "tiny"))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()
        assert not one.run_directory.exists()


@pytest.mark.parametrize(
    ("bodies", "message"),
    [
        ([NO_MEMORY], r"failed to start \(loading the model\): MemoryError; lower --kv-memory"),
        ([KILLED], "was ended by SIGKILL .*--kv-memory"),
        ([REFUSES], "^--dtype is wrong$"),
        ([WAITS, KILLED], "was ended by SIGKILL .*--kv-memory"),
        ([WAITS, NO_MEMORY], "MemoryError; lower --kv-memory"),
    ],
)
def test_an_engine_that_never_served_ends_the_server(
    engine: Callable[..., EngineProcesses], bodies: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks = Launcher(list(bodies))
    running = engine(ranks, len(bodies))
    with pytest.raises(StartupError, match=message):
        tick_until(running.tick, lambda: False)
    assert len(ranks.starts) == len(bodies), "nothing was restarted"
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_rank_is_reported_before_the_failures_of_others(engine: Callable[..., EngineProcesses]) -> None:
    running = engine(Launcher([REFUSES, KILLED]), 2)
    for pid in running.process_ids():
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(StartupError, match="was ended by SIGKILL"):
        tick_until(running.tick, lambda: False)


def test_an_engine_that_has_served_is_restarted(engine: Callable[..., EngineProcesses]) -> None:
    """Also if it then fails to start: another process may have used the memory for a while."""
    ranks = Launcher([DIES_LATER, NO_MEMORY, KILLED, SERVE])
    running = engine(ranks)
    tick_until(running.tick, lambda: len(ranks.starts) == 4)
    assert [start.restarted for start in ranks.starts] == [False, True, True, True]


def test_the_phase_reaches_clients_that_connect_late(engine: Callable[..., EngineProcesses]) -> None:
    running = engine(Launcher([WAITS]))
    heartbeat = running.run_directory / "heartbeat-0"
    tick_until(running.tick, lambda: heartbeat.is_file() and heartbeat.read_text() == "loading the model")
    running.tick()
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(running.state_address)
        states: list[EngineState] = []

        def receive() -> bool:
            if socket.poll(0):
                states.append(msgspec.msgpack.decode(socket.recv(), type=EngineState))
            return bool(states)

        tick_until(running.tick, receive)
    assert states[0] == EngineState("starting", "the engine is starting (loading the model)")


def test_a_hung_engine_is_replaced(engine: Callable[..., EngineProcesses], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_processes, "HANG_SECONDS", 3.0)
    ranks = Launcher(["    heartbeat.enter(SERVING)\n    time.sleep(600)", SERVE])
    running = engine(ranks)
    tick_until(running.tick, lambda: len(ranks.starts) == 2)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], WatchedProcess]]:
    """Makes watched processes that count as hung after 3 s."""
    monkeypatch.setattr(child_process, "HANG_SECONDS", 3.0)
    made: list[WatchedProcess] = []

    def make(bodies: list[str]) -> WatchedProcess:
        made.append(WatchedProcess("adapter loader", tmp_path, Launcher(bodies)))
        made[-1].start()
        return made[-1]

    yield make
    stop_all([process for one in made for process in one.processes])


@pytest.mark.parametrize(
    ("body", "message"), [(NO_MEMORY, "MemoryError"), (KILLED, "SIGKILL"), (REFUSES, "--dtype is wrong")]
)
def test_a_process_that_never_served_ends_the_server(
    watched: Callable[[list[str]], WatchedProcess], body: str, message: str
) -> None:
    child = watched([body])
    with pytest.raises(StartupError, match=message):
        tick_until(child.tick, lambda: False)


def test_a_stopped_process_is_replaced(watched: Callable[[list[str]], WatchedProcess]) -> None:
    child = watched([SERVE])
    (first,) = child.processes
    heartbeat = Path(child.run_directory / "heartbeat-adapter-loader")
    tick_until(child.tick, lambda: heartbeat.is_file() and heartbeat.read_text() == "serving")
    child.tick()
    first.send_signal(signal.SIGSTOP)
    tick_until(child.tick, lambda: child.processes != [first])
    assert first.returncode == -signal.SIGKILL


def test_a_process_that_has_served_is_restarted(watched: Callable[[list[str]], WatchedProcess]) -> None:
    child = watched([DIES_LATER, SERVE])
    (first,) = child.processes
    tick_until(child.tick, lambda: child.processes != [first])


def test_arguments_are_json() -> None:
    """`start_child` passes what `run_child` reads."""
    start = ChildStart("/run/heartbeat", True)
    assert json.loads(msgspec.json.encode(start)) == {"heartbeat": "/run/heartbeat", "restarted": True}
