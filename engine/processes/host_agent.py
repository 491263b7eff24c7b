"""The agent of a host other than the first: starts the host's ranks, watches them, and ends them with the first host.

`motet serve --node-rank N` runs it. It joins again when the first host comes back; SIGTERM or Ctrl-C ends it.
"""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import zmq
from loguru import logger
from zmq.utils.monitor import parse_monitor_message

from motet.core.child_processes import REFUSED, ChildStart, forget_refusal, refusal
from motet.core.errors import StartupError
from motet.core.heartbeat import HeartbeatMonitor
from motet.core.paths import cache_directory
from motet.core.run_directory import RunDirectory
from motet.core.startup_failures import ended_at_start
from motet.engine.distributed.hosts import HostGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.processes.child_process import public_environment, start_child, stop_all
from motet.engine.processes.host_messages import (
    BEAT_SECONDS,
    HEARTBEAT_MILLISECONDS,
    LOST_SECONDS,
    MAX_TICK_SECONDS,
    FirstHostLeaves,
    FirstHostState,
    HostState,
    JoinAccepted,
    JoinAgain,
    JoinHosts,
    JoinRefused,
    LeaveHosts,
    RanksEnded,
    StartRanks,
    StopRanks,
    ToAgent,
    ToFirstHost,
)
from motet.engine.worker import WorkerSpec

POLL_MILLISECONDS = 50

MAX_HANDSHAKES = 3
"""Failed handshakes in a row after which the key is taken to be wrong: the first host may have ended during one."""

_HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@dataclass(frozen=True)
class LocalConfig:
    """What is this host's own: the model's directory and the threads in `engine`, and the limit of its cache."""

    engine: EngineConfig
    cache_size: int | None


class LocalRanks:
    """This host's ranks, which start and end together."""

    def __init__(self, group: HostGroup, config: LocalConfig) -> None:
        self._group, self._config = group, config
        self._directory = RunDirectory()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._heartbeats: list[HeartbeatMonitor] = []
        self._start: StartRanks | None = None

    @property
    def running(self) -> bool:
        """Whether there are ranks."""
        return bool(self._processes)

    def start(self, start: StartRanks) -> None:
        """Start the ranks, in place of earlier ones."""
        self.stop()
        forget_refusal(self._directory.path)
        self._start = start
        variables = public_environment() | self._group.variables()
        for spec in start.ranks:
            heartbeat = HeartbeatMonitor(self._directory.path / f"heartbeat-{spec.tp_rank}", LOST_SECONDS)
            child = ChildStart(str(heartbeat.path), start.restarted)
            self._heartbeats.append(heartbeat)
            self._processes.append(
                start_child("motet.engine.worker", self._localised(spec), child, variables=variables)
            )

    def poll(self) -> RanksEnded | None:
        """If a rank has ended: why. The others are ended then."""
        for heartbeat in self._heartbeats:
            heartbeat.poll()
        ended = [(i, p.returncode) for i, p in enumerate(self._processes) if p.poll() is not None]
        if self._start is None or all(code == 0 for _, code in ended):  # 0: by order of rank 0
            if len(ended) == len(self._processes):
                self.stop()
            return None
        index, code = min(ended, key=lambda each: each[1])  # a signal first: the others fail because of it
        rank, heartbeat = self._start.ranks[index].tp_rank, self._heartbeats[index]
        final = code == REFUSED or not (self._start.restarted or heartbeat.serving)
        if code == REFUSED:
            reason = refusal("engine", self._directory.path).message
        elif final:
            reason = ended_at_start("engine", code, heartbeat.phase).message
        else:
            reason = f"rank {rank} ended with {code}"
        report = RanksEnded(self._start.engine_id, reason, final, code < 0)
        self.stop()
        return report

    def stop(self) -> None:
        """End the ranks."""
        for process in self._processes:
            process.kill()
        stop_all(self._processes)
        self._processes, self._heartbeats, self._start = [], [], None

    def close(self) -> None:
        """End the ranks, and remove the run directory."""
        self.stop()
        self._directory.remove()

    def _localised(self, spec: WorkerSpec) -> WorkerSpec:
        """A rank of the first host's plan with this host's paths."""
        own, cache = self._config.engine, cache_directory()
        engine = msgspec.structs.replace(spec.engine, directory=own.directory, threads=own.threads)
        return msgspec.structs.replace(
            spec,
            engine=engine,
            kernel_cache=str(cache / "kernels"),
            cache=str(cache),
            cache_size=self._config.cache_size,
        )


class HostAgent:
    """Joins the first host, and does what it says until `stop` is set."""

    def __init__(self, group: HostGroup, facts: JoinHosts, ranks: LocalRanks) -> None:
        self._group, self._facts, self._ranks = group, facts, ranks
        self._joined = False
        self._silent_seconds = 0.0
        self._failed_handshakes = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.ipv6 = ":" in group.address
        self._socket.immediate = True  # messages wait for a connection, not for a host that may come back later
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 100, 2000
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = HEARTBEAT_MILLISECONDS
        group.key.secure_client(self._socket)
        self._monitor = self._socket.get_monitor_socket(_HANDSHAKE_FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._decode = msgspec.msgpack.Decoder(ToAgent).decode

    def run(self, stop: threading.Event) -> None:
        """Raises StartupError if the first host refuses this one, or its engine cannot start."""
        address = self._group.named_endpoint
        logger.info("host {}: joining the first host at {}", self._group.node_rank, address)
        self._socket.connect(address)
        try:
            self._loop(stop)
            self._ranks.stop()
            self._send(LeaveHosts())
        finally:
            self._ranks.close()
            self._socket.disable_monitor()
            self._context.destroy(linger=500)

    def _loop(self, stop: threading.Event) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        last, beat = time.monotonic(), 0.0
        while not stop.is_set():
            poller.poll(POLL_MILLISECONDS)
            while self._monitor.poll(0):
                self._watch_connection(parse_monitor_message(self._monitor.recv_multipart())["event"])
            while self._socket.poll(0):
                self._handle(self._decode(self._socket.recv()))
            self._report_ended()
            now = time.monotonic()
            self._silent_seconds += min(now - last, MAX_TICK_SECONDS)
            last = now
            if self._joined and self._silent_seconds > LOST_SECONDS:
                self._leave(f"has not responded for {LOST_SECONDS:g} s")
            if now - beat >= BEAT_SECONDS:
                beat = now
                self._send(HostState(self._ranks.running) if self._joined else self._facts)

    def _handle(self, message: ToAgent) -> None:
        self._silent_seconds = 0.0
        match message:
            case JoinAccepted():
                self._joined = True
                logger.info("joined the first host as host {} of {}", self._group.node_rank, self._group.nnodes)
            case JoinRefused():
                raise StartupError(message.reason)
            case JoinAgain() if self._joined:
                self._leave("was started again")
            case FirstHostLeaves():
                self._leave("was stopped")
            case StartRanks():
                logger.info("starting {} ranks of engine {}", len(message.ranks), message.engine_id)
                self._ranks.start(message)
                self._send(HostState(True))
            case StopRanks():
                self._report_ended()  # it may be why the first host ends the engine
                self._ranks.stop()
                self._send(HostState(False))
            case FirstHostState() | JoinAgain():
                pass

    def _report_ended(self) -> None:
        if (ended := self._ranks.poll()) is not None:
            logger.error("{}; ended this host's ranks", ended.reason)
            self._send(ended)

    def _leave(self, reason: str) -> None:
        """End the ranks, and join again when the first host is there."""
        logger.warning("the first host ({}) {}; ending this host's ranks until it is back", self._group.name, reason)
        self._ranks.stop()
        self._joined = False

    def _watch_connection(self, event: int) -> None:
        """Raises StartupError if the first host has another key."""
        self._failed_handshakes = 0 if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else self._failed_handshakes + 1
        if self._failed_handshakes >= MAX_HANDSHAKES:
            raise StartupError(
                f"the first host ({self._group.named_endpoint}) refuses this host's key; set the same "
                "--host-key-file or MOTET_HOST_KEY on all hosts",
                param="host_key_file",
            )

    def _send(self, message: ToFirstHost) -> None:
        with suppress(zmq.Again):  # not connected
            self._socket.send(msgspec.msgpack.encode(message), zmq.NOBLOCK)
