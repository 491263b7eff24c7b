"""The messages between the first host and the agents of the other hosts: msgpack over an encrypted ZeroMQ socket.

agent ──JoinHosts──> first host ──JoinAccepted | JoinRefused──> agent
agent ──HostState, each second──> first host ──FirstHostState, each second──> agent
agent ──RanksEnded | LeaveHosts──> first host
first host ──StartRanks | StopRanks | FirstHostLeaves──> agent
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TypeAlias

import msgspec

from motet.engine.worker import WorkerSpec

BEAT_SECONDS = 1.0

LOST_SECONDS = 5.0
"""A host that has not sent anything for this long is lost."""

HEARTBEAT_MILLISECONDS = 1000, 5000
"""ZeroMQ's own heartbeats, interval and time-out, by which it drops a dead connection and makes a new one."""

MAX_TICK_SECONDS = 1.0
"""A longer time between two turns of a loop counts as this much: the host itself was suspended."""


class JoinHosts(msgspec.Struct, frozen=True, tag=True):
    """An agent's first message. All but `name` and `node_rank` must equal the first host's."""

    node_rank: int
    name: str
    versions: str
    nnodes: int
    shards: int
    model: str

    def difference(self, other: JoinHosts) -> str:
        """Why a host with these facts cannot join the host with `other`; empty if it can."""
        pairs = (
            ("Motet", self.versions, other.versions, "install the same version on all hosts"),
            ("--nnodes", self.nnodes, other.nnodes, "set the same --nnodes on all hosts"),
            ("--shards", self.shards, other.shards, "set the same --shards on all hosts"),
            ("the model's fingerprint", self.model, other.model, "use the same --model, with the same files"),
        )
        for name, mine, first, remedy in pairs:
            if mine != first:
                return f"{name} is {mine} there and {first} on the first host; {remedy}"
        return ""


class JoinAccepted(msgspec.Struct, frozen=True, tag=True):
    """The host has joined."""


class JoinRefused(msgspec.Struct, frozen=True, tag=True):
    """The host cannot join, or the engine cannot start; its agent ends with `reason`."""

    reason: str


class JoinAgain(msgspec.Struct, frozen=True, tag=True):
    """The first host does not know the sender: it was started again, or took the sender for lost."""


class StartRanks(msgspec.Struct, frozen=True, tag=True):
    """Start these ranks. The paths in them are the first host's. `restarted`: the engine has served before."""

    engine_id: str
    ranks: tuple[WorkerSpec, ...]
    restarted: bool


class StopRanks(msgspec.Struct, frozen=True, tag=True):
    """End the host's ranks; the next HostState confirms it."""


class FirstHostLeaves(msgspec.Struct, frozen=True, tag=True):
    """The first host is about to end. Agents end their ranks and wait for it."""


class FirstHostState(msgspec.Struct, frozen=True, tag=True):
    """The first host responds."""


class HostState(msgspec.Struct, frozen=True, tag=True):
    """Whether ranks run on the host."""

    running: bool


class LeaveHosts(msgspec.Struct, frozen=True, tag=True):
    """The host's agent is about to end."""


class RanksEnded(msgspec.Struct, frozen=True, tag=True):
    """A rank of the host ended, and the agent has ended the others.

    `final`: it was never serving, so that a restart would not help. `killed`: by a signal, so that it is the cause of
    failures on other hosts.
    """

    engine_id: str
    reason: str
    final: bool
    killed: bool


ToFirstHost: TypeAlias = JoinHosts | HostState | RanksEnded | LeaveHosts
ToAgent: TypeAlias = JoinAccepted | JoinRefused | JoinAgain | StartRanks | StopRanks | FirstHostState | FirstHostLeaves


def versions() -> str:
    """The versions that must be equal on all hosts, as one string."""
    torch = version("torch").partition("+")[0]  # without the build, such as +cpu
    return f"{version('motet')} with torch {torch}"
