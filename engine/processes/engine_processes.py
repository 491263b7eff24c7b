"""Starts, watches, restarts and ends the processes of an engine: its ranks and the loader. Imports no torch.

The supervisor and the library call `start`, and then `tick` about 20 times per second.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq
from loguru import logger

from motet.core.child_processes import REFUSED, ChildStart, forget_refusal, refusal
from motet.core.errors import StartupError
from motet.core.heartbeat import HeartbeatMonitor
from motet.core.messages import EngineState
from motet.core.paths import cache_directory
from motet.core.run_directory import RunDirectory
from motet.core.startup_failures import ended_at_start
from motet.engine.adapters.loader import LoaderSpec
from motet.engine.distributed.hosts import HostGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.processes.child_process import WatchedProcess, public_environment, start_child, stop_all
from motet.engine.processes.several_hosts import SeveralHosts
from motet.engine.worker import WorkerSpec

HANG_SECONDS = 60.0
"""Rank 0 has no heartbeat for this long only if it hangs: a step takes a few seconds at most."""

HUNG = -1
"""The exit code for an engine that hangs, whose processes have not ended."""

LOADER_SECONDS = 5.0
"""The shortest time between two starts of the loader, so that a loader that fails at once is not started too often."""

EARLY_SECONDS = 60.0
"""The next restart of an engine that ends earlier than this waits longer."""

REPORT_SECONDS = 1.0
"""How often the state is published while the engine starts, for API processes that connect late."""

LONG_PHASE_SECONDS = 30.0
"""How often a long phase of the start is logged."""


@dataclass
class EngineProcesses:
    """One engine: `config.shards` ranks, which start and end together, and the loader.

    All addresses are in `run_directory`, so that the engines of one host are independent of each other. With `hosts`,
    this is the first of several hosts, and agents start the ranks of the others.
    """

    config: EngineConfig
    name: str
    hosts: HostGroup | None = None

    def __post_init__(self) -> None:
        """Raises StartupError if there is no directory for temporary files, or the ports for hosts cannot be used."""
        self._others = None if self.hosts is None else SeveralHosts(self.hosts, Path(self.config.directory))
        self._directory = RunDirectory()
        self.run_directory = self._directory.path
        self.engine_address = f"ipc://{self.run_directory}/engine"
        self.loader_address = f"ipc://{self.run_directory}/loader"
        self.state_address = f"ipc://{self.run_directory}/state"
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._loader = WatchedProcess(
            "adapter loader", self.run_directory, self._launch_loader, interval=LOADER_SECONDS
        )
        self._heartbeat = HeartbeatMonitor(self.run_directory / "heartbeat-0", HANG_SECONDS)
        self._started = 0.0
        self._served = False
        self._failures = 0
        self._restart_at: float | None = None
        self._progress = StartProgress()
        self._context = zmq.Context()
        self._state = self._context.socket(zmq.PUB)
        self._state.bind(self.state_address)
        self._engine_id = ""

    def start(self) -> None:
        """Start the ranks and the loader; does not wait for them, nor for other hosts."""
        if self._others is None:
            self._start_ranks()
        else:
            self._restart_at = time.monotonic()
        self._loader.start()

    def tick(self) -> None:
        """Publish the engine's state, end processes that hang, and restart processes that have ended.

        Raises StartupError if a process has reported that it cannot start, or ended before it has ever served.
        """
        codes = [p.returncode for p in self._ranks if p.poll() is not None]
        if self._ranks:
            self._heartbeat.poll()
            self._served = self._served or self._heartbeat.serving
        if codes:
            self._lost(codes)
        elif self._heartbeat.hung:
            logger.error("the engine has not responded for {:g} s", HANG_SECONDS)
            self._lost([HUNG])
        elif self._others is not None and self._others.poll(self._engine_id) and self._ranks:
            self._lost([])
        elif self._ranks and not self._heartbeat.serving and (state := self._progress.state(self._heartbeat.phase)):
            self._publish(state)
        if self._restart_at is not None and time.monotonic() >= self._restart_at and self._all_hosts_ready():
            self._restart_at = None
            self._start_ranks()
        self._loader.tick()

    def stop(self) -> None:
        """End all processes, and remove the run directory."""
        stop_all([*self._ranks, *self._loader.processes])  # rank 0 tells those of other hosts
        if self._others is not None:
            self._others.close()
        self._context.destroy(linger=100)
        self._directory.remove()

    def process_ids(self) -> list[int]:
        """The ranks' process ids, rank 0 first."""
        return [process.pid for process in self._ranks]

    def _start_ranks(self) -> None:
        engine_id = self._engine_id = uuid.uuid4().hex[:12]
        self._started = time.monotonic()
        self._progress = StartProgress()
        self._heartbeat.reset()
        specs = [self._rank_spec(rank, engine_id) for rank in range(self.config.shards)]
        if self._others is not None:
            forget_refusal(self.run_directory)
            specs = self._others.start(specs, self._served)
        self._ranks = [self._start_rank(spec) for spec in specs]

    def _start_rank(self, spec: WorkerSpec) -> subprocess.Popen[bytes]:
        start = ChildStart(f"{self.run_directory}/heartbeat-{spec.tp_rank}", self._served)
        variables = public_environment() | (self.hosts.variables() if self.hosts is not None else {})
        return start_child("motet.engine.worker", spec, start, variables=variables)

    def _launch_loader(self, start: ChildStart) -> subprocess.Popen[bytes]:
        spec = LoaderSpec(self.config, self.loader_address, str(cache_directory()), (self.name,))
        return start_child("motet.engine.adapters.loader", spec, start, variables=public_environment())

    def _all_hosts_ready(self) -> bool:
        """Whether every host can start its ranks; publishes which ones cannot."""
        if self._others is None or not (absent := self._others.absent()):
            return True
        if (state := self._progress.state(f"waiting for {absent}")) is not None:
            self._publish(state)
        return False

    def _lost(self, codes: list[int]) -> None:
        """End all ranks, since they work together only, and plan the restart.

        `codes` are those of this host's ranks that ended; there are none if the cause is on another host.
        """
        failure = self._final_failure(codes)
        if self._others is not None:
            self._others.stop(failure)
        elif failure is not None:
            raise failure
        self._publish(EngineState("down", "the engine stopped and is being restarted"))
        if codes:
            logger.error("an engine rank ended with {}; restarting the engine", codes[0])
        self._progress = StartProgress()
        for process in self._ranks:
            process.kill()
        stop_all(self._ranks)
        self._ranks = []
        self._heartbeat.reset()
        # The wait before a restart grows while engines end early.
        self._failures = self._failures + 1 if time.monotonic() - self._started < EARLY_SECONDS else 0
        self._restart_at = time.monotonic() + min(30.0, 0.5 * (2 ** min(self._failures, 6) - 1))

    def _final_failure(self, codes: list[int]) -> StartupError | None:
        """Why a restart would not help, if so."""
        signals = [code for code in codes if code < 0]
        if not self._served and signals:  # checked first: the other ranks fail because this one was killed
            return ended_at_start("engine", signals[0], self._heartbeat.phase)
        if REFUSED in codes:
            return refusal("engine", self.run_directory)
        if codes and not self._served:
            return ended_at_start("engine", codes[0], self._heartbeat.phase)
        return None

    def _publish(self, state: EngineState) -> None:
        self._state.send(msgspec.msgpack.encode(state))

    def _rank_spec(self, rank: int, engine_id: str) -> WorkerSpec:
        return WorkerSpec(
            tp_rank=rank,
            tp_size=self.config.shards,
            engine_id=engine_id,
            name=self.name,
            engine=self.config,
            engine_address=self.engine_address,
            ranks_address=f"ipc://{self.run_directory}/ranks-{engine_id}",
            store=str(self.run_directory / f"store-{engine_id}"),
            kernel_cache=str(cache_directory() / "kernels"),
        )


class StartProgress:
    """The phase of the engine's start, for the log and for clients."""

    def __init__(self) -> None:
        self._phase = ""
        self._entered = self._logged = time.monotonic()
        self._published = 0.0

    def state(self, phase: str) -> EngineState | None:
        """The state to publish, at a new phase and every REPORT_SECONDS; else None. Logs new and long phases."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._entered, self._logged, self._published = phase, now, now, 0.0
            logger.info("the engine is starting: {}", phase)
        elif phase and now - self._logged > LONG_PHASE_SECONDS:
            self._logged = now
            logger.info("the engine is still starting: {} ({:.0f} s)", phase, now - self._entered)
        if now - self._published < REPORT_SECONDS:
            return None
        self._published = now
        return EngineState("starting", f"the engine is starting ({phase})" if phase else "the engine is starting")
