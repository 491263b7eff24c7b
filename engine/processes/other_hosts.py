"""The first host's side of an engine on several hosts: which hosts have joined, respond, and run their ranks.

A thread answers the hosts' agents, so that nothing that the supervisor waits for makes them believe that it is gone.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import zmq
from loguru import logger
from zmq.utils.monitor import parse_monitor_message

from motet.engine.distributed.host_key import bind
from motet.engine.distributed.hosts import AGENTS, HostGroup
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

POLL_MILLISECONDS = 50

REFUSAL_SECONDS = 10.0
"""How often a connection with a wrong key is logged: the host tries again at once."""

RIVAL_SECONDS = LOST_SECONDS + 2 * BEAT_SECONDS
"""An agent whose number another one has is refused after this time: a dead one is lost earlier."""

CLOSE_MILLISECONDS = 500
"""How long the end of the engine may wait for messages to the hosts."""

_WRONG_KEY = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


@dataclass
class _Host:
    """A host that has joined; `idle`: it has reported since the last command that it runs no ranks.

    `rival` is another agent that wants to join with the same number, for `rival_seconds` already.
    """

    identity: bytes
    name: str
    address: str
    idle: bool = True
    silent_seconds: float = 0.0
    rival: bytes = b""
    rival_seconds: float = 0.0


@dataclass(frozen=True)
class HostFailure:
    """Why the engine has to end: a host is lost, or its ranks have ended (`ranks`)."""

    message: str
    ranks: RanksEnded | None = None


class OtherHosts:
    """The hosts 1, 2, … of `group`. All methods return at once; the thread does the rest."""

    def __init__(self, group: HostGroup, facts: JoinHosts) -> None:
        """`facts` are the first host's own. Raises StartupError if the address is in use or not this host's."""
        self._group, self._facts = group, facts
        self._hosts: dict[int, _Host] = {}
        self._lock = threading.Lock()
        self._failures: queue.SimpleQueue[HostFailure] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[int, ToAgent]] = queue.SimpleQueue()
        self._context = zmq.Context()
        self._authenticator = group.key.authenticator(self._context)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = HEARTBEAT_MILLISECONDS
        group.key.secure_server(self._socket)
        self._monitor = self._socket.get_monitor_socket(_WRONG_KEY | zmq.EVENT_ACCEPTED)
        self._decoder = msgspec.msgpack.Decoder(ToFirstHost)
        self._peer, self._refusal_logged = "an unknown address", -REFUSAL_SECONDS
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="other-hosts", daemon=True)
        try:
            bind(self._socket, group.endpoint(AGENTS))
        except BaseException:
            self._end_sockets()
            raise
        self._thread.start()

    def absent(self) -> str:
        """The hosts that cannot start ranks now, such as `host 1`: not joined, or still ending the last engine."""
        with self._lock:
            ready = {rank for rank, host in self._hosts.items() if host.idle}
        return ", ".join(f"host {rank}" for rank in range(1, self._group.nnodes) if rank not in ready)

    def start(self, starts: Mapping[int, StartRanks]) -> None:
        """Start the ranks of each host, by its number."""
        self._command(lambda rank: starts[rank])

    def stop(self) -> None:
        """End the ranks of all hosts; they are absent until they confirm it."""
        self._command(lambda rank: StopRanks())

    def take_failures(self) -> list[HostFailure]:
        """The failures since the last call."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._failures.get_nowait())
        return found

    def close(self, reason: str = "") -> None:
        """End the ranks of all hosts; with `reason`, why the engine cannot start, also their agents."""
        self._command(lambda rank: JoinRefused(reason) if reason else FirstHostLeaves())
        self._closing.set()
        self._thread.join()
        self._end_sockets()

    def _command(self, message: Callable[[int], ToAgent]) -> None:
        with self._lock:
            for rank, host in self._hosts.items():
                host.idle = False
                self._outbox.put((rank, message(rank)))

    def _end_sockets(self) -> None:
        self._socket.disable_monitor()
        self._authenticator.stop()
        self._context.destroy(linger=CLOSE_MILLISECONDS)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        last, beat = time.monotonic(), 0.0
        while True:
            poller.poll(POLL_MILLISECONDS)
            closing = self._closing.is_set()
            with self._lock:
                self._receive()
                now = time.monotonic()
                self._count_silence(min(now - last, MAX_TICK_SECONDS))
                last = now
                while not self._outbox.empty():
                    rank, message = self._outbox.get()
                    if (host := self._hosts.get(rank)) is not None:
                        self._send(host.identity, message)
                if now - beat >= BEAT_SECONDS:
                    beat = now
                    for host in self._hosts.values():
                        self._send(host.identity, FirstHostState())
            if closing:
                return

    def _receive(self) -> None:
        while self._monitor.poll(0):
            self._watch_connections()
        while self._socket.poll(0):
            identity, frame = self._socket.recv_multipart(copy=False)[:2]
            try:
                message = self._decoder.decode(frame.bytes)
            except msgspec.MsgspecError:
                reason = f"the first host has Motet {self._facts.versions}, which cannot read this host's messages"
                self._refuse(identity.bytes, _address(frame), reason)
                continue
            if isinstance(message, JoinHosts):
                self._join(identity.bytes, _address(frame), message)
            else:
                self._handle(identity.bytes, message)

    def _handle(self, identity: bytes, message: HostState | RanksEnded | LeaveHosts) -> None:
        found = [(rank, host) for rank, host in self._hosts.items() if host.identity == identity]
        if not found:
            self._send(identity, JoinAgain())
            return
        rank, host = found[0]
        host.silent_seconds = 0.0
        if isinstance(message, LeaveHosts):
            self._lost(rank, "it was stopped", "WARNING")
        elif isinstance(message, RanksEnded):
            text = f"host {rank} ({host.name}, {host.address}): {message.reason}"
            self._failures.put(HostFailure(text, message))
        else:
            host.idle = not message.running

    def _join(self, identity: bytes, address: str, message: JoinHosts) -> None:
        """Accept a host, or refuse it by name."""
        rank = message.node_rank
        reason = message.difference(self._facts)
        if not reason and not 1 <= rank < self._group.nnodes:
            reason = f"--node-rank {rank} is not one of 1 to {self._group.nnodes - 1}"
        present = self._hosts.get(rank)
        if not reason and present is not None and present.identity != identity:
            if present.rival != identity:
                present.rival, present.rival_seconds = identity, 0.0
            if present.rival_seconds <= RIVAL_SECONDS:  # the present one may be dead; the other one asks again
                return
            reason = f"{present.name} ({present.address}) has already joined with --node-rank {rank}"
        if reason:
            self._refuse(identity, f"{message.name} ({address})", reason)
            return
        self._send(identity, JoinAccepted())
        if present is not None:  # the agent has sent the message twice
            return
        self._hosts[rank] = _Host(identity, message.name, address)
        logger.info("host {} of {} has joined: {} ({})", rank, self._group.nnodes, message.name, address)

    def _refuse(self, identity: bytes, peer: str, reason: str) -> None:
        logger.error("{} cannot join: {}", peer, reason)
        self._send(identity, JoinRefused(reason))

    def _count_silence(self, seconds: float) -> None:
        for rank, host in list(self._hosts.items()):
            host.silent_seconds += seconds
            host.rival_seconds += seconds
            if host.silent_seconds > LOST_SECONDS:
                self._lost(rank, f"it has not responded for {LOST_SECONDS:g} s")

    def _lost(self, rank: int, reason: str, level: str = "ERROR") -> None:
        host = self._hosts.pop(rank)
        message = f"host {rank} ({host.name}, {host.address}) is lost: {reason}"
        logger.log(level, "{}", message)
        self._failures.put(HostFailure(message))

    def _watch_connections(self) -> None:
        """Log the peers whose key is wrong."""
        event = parse_monitor_message(self._monitor.recv_multipart())
        if event["event"] == zmq.EVENT_ACCEPTED:
            self._peer = _peer_of(int(event["value"]))
        elif time.monotonic() - self._refusal_logged > REFUSAL_SECONDS:
            self._refusal_logged = time.monotonic()
            logger.error(
                "refused a connection from {}: its host key is not this host's; set the same --host-key-file or "
                "MOTET_HOST_KEY on all hosts",
                self._peer,
            )

    def _send(self, identity: bytes, message: ToAgent) -> None:
        with suppress(zmq.ZMQError):
            self._socket.send_multipart([identity, msgspec.msgpack.encode(message)], zmq.NOBLOCK)


def _address(frame: zmq.Frame) -> str:
    """The IP address of a message's sender."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "unknown address"


def _peer_of(descriptor: int) -> str:
    """The address of an accepted connection, unless it has closed."""
    try:
        with socket.socket(fileno=socket.dup(descriptor)) as connection:
            return str(connection.getpeername()[0])
    except OSError:
        return "an address whose connection has closed"
