"""The first host's part in an engine on several hosts: places the ranks, and decides what a failure means.

A failure on one host makes ranks on the others fail, too. So the decision waits until every other host has confirmed
that it has ended its ranks, or is lost: a lost host is waited for, and any other failure at the start ends the server.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from motet.core.errors import StartupError
from motet.core.paths import cache_directory
from motet.engine.distributed.hosts import FILES, RANKS, RENDEZVOUS, HostGroup
from motet.engine.distributed.shipped_files import FileServer
from motet.engine.processes.host_messages import JoinHosts, StartRanks, versions
from motet.engine.processes.model_fingerprint import model_fingerprint
from motet.engine.processes.other_hosts import OtherHosts
from motet.engine.worker import WorkerSpec


def host_facts(group: HostGroup, directory: Path) -> JoinHosts:
    """This host's facts, to be compared with the first host's. `directory` has the model. Raises StartupError."""
    return JoinHosts(
        node_rank=group.node_rank,
        name=socket.gethostname(),
        versions=versions(),
        nnodes=group.nnodes,
        shards=group.shards,
        model=model_fingerprint(directory),
    )


class SeveralHosts:
    """The hosts of one engine, as the first host sees them."""

    def __init__(self, group: HostGroup, directory: Path) -> None:
        """Raises StartupError if the first host's ports cannot be used, or the model in `directory` not be read."""
        self._group = group
        self._failure: StartupError | None = None
        self._others = OtherHosts(group, host_facts(group, directory))
        try:
            self._files = FileServer(group.endpoint(FILES), group.key, cache_directory())
        except BaseException:
            self._others.close()
            raise

    def absent(self) -> str:
        """The hosts that cannot start ranks now; empty if all can.

        Raises StartupError if all can and the engine has ended by a failure that a restart would repeat.
        """
        absent = self._others.absent()
        if not absent and self._failure is not None:
            raise self._failure
        return absent

    def start(self, specs: Sequence[WorkerSpec], restarted: bool) -> list[WorkerSpec]:
        """Start the other hosts' ranks; returns the specs of this host's."""
        self._failure = None
        hosts = {node_rank: self._placed(specs, node_rank) for node_rank in range(self._group.nnodes)}
        self._others.start(
            {
                node_rank: StartRanks(specs[0].engine_id, tuple(ranks), restarted)
                for node_rank, ranks in hosts.items()
                if node_rank
            }
        )
        return hosts[0]

    def stop(self, failure: StartupError | None) -> None:
        """End the other hosts' ranks; with `failure`, why this host's have ended, if a restart would repeat it."""
        self._failure = self._failure or failure
        self._others.stop()

    def poll(self, engine_id: str) -> str:
        """Why the engine has to end, by what has happened on other hosts since the last call; empty if nothing has."""
        reason = ""
        for failure in self._others.take_failures():
            if failure.ranks is None:
                reason, self._failure = failure.message, None
            elif failure.ranks.engine_id == engine_id:
                reason = reason or failure.message
                if failure.ranks.final and (self._failure is None or failure.ranks.killed):
                    self._failure = StartupError(failure.message)
        return reason

    def close(self) -> None:
        """End the other hosts' ranks, and their agents if the engine cannot start."""
        self._others.close("" if self._failure is None else f"the engine cannot start: {self._failure.message}")
        self._files.close()

    def _placed(self, specs: Sequence[WorkerSpec], node_rank: int) -> list[WorkerSpec]:
        """The specs of a host's ranks. Only what crosses hosts gets a tcp address."""
        group = self._group
        placed = []
        for local_rank, tp_rank in enumerate(group.ranks(node_rank)):
            spec = msgspec.structs.replace(
                specs[tp_rank],
                local_rank=local_rank,
                store=f"{group.endpoint(RENDEZVOUS)}/{specs[tp_rank].engine_id}",
                hosts_address="" if tp_rank else group.endpoint(RANKS),
            )
            if node_rank:
                spec = msgspec.structs.replace(
                    spec,
                    engine_address="",
                    ranks_address=group.endpoint(RANKS),
                    files_address=group.endpoint(FILES),
                )
            placed.append(spec)
        return placed
