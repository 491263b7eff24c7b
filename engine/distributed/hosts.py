"""The hosts of one engine: their number, this host's place, and the addresses that cross hosts. Imports no torch.

Four ports of the first host, from --master-port on: the hosts' agents, the ranks' messages, the rendezvous of the
process group, and adapter files.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from motet.core.errors import StartupError
from motet.core.settings import HOST_KEY_VARIABLE, Settings
from motet.engine.distributed.host_key import HostKey

AGENTS, RANKS, RENDEZVOUS, FILES = range(4)
"""Offsets of the ports from --master-port."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class HostGroup:
    """`nnodes` hosts, each with `shards / nnodes` ranks.

    `address` is an IP address of the first host, and `name` the same or a name of it, whose address may change.
    """

    nnodes: int
    node_rank: int
    shards: int
    address: str
    port: int
    key: HostKey
    name: str

    @property
    def local_shards(self) -> int:
        """The number of ranks on each host."""
        return self.shards // self.nnodes

    def ranks(self, node_rank: int) -> range:
        """The ranks on a host."""
        return range(node_rank * self.local_shards, (node_rank + 1) * self.local_shards)

    def endpoint(self, service: int) -> str:
        """The address of one of the first host's services, such as AGENTS."""
        return _endpoint(self.address, self.port + service)

    @property
    def named_endpoint(self) -> str:
        """The address at which agents join; ZeroMQ resolves the name at each attempt."""
        return _endpoint(self.name, self.port + AGENTS)

    def variables(self) -> dict[str, str]:
        """The environment of this host's ranks: the key, and the interface for gloo and NCCL unless the user set it."""
        found = interface(self.address)
        names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
        return {HOST_KEY_VARIABLE: self.key.text} | (dict.fromkeys(names, found) if found else {})


def _endpoint(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def with_torchrun(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """`settings` with the hosts of torchrun's environment, if that names several and --nnodes does not.

    Each host has one `motet serve`, which starts the host's ranks; RANK is the host's number. Raises StartupError if
    torchrun has started several processes on this host.
    """
    if settings.nnodes > 1 or not all(environ.get(name) for name in _TORCHRUN):
        return settings
    try:
        rank, world_size, port = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    except ValueError as error:
        raise StartupError("RANK, WORLD_SIZE and MASTER_PORT must be numbers", param="nnodes") from error
    if world_size < 2:
        return settings
    if environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise StartupError(
            "torchrun has started several processes on this host; start one, with --nproc-per-node 1: motet serve "
            "starts the host's ranks itself (--shards divided by the number of hosts)",
            param="nnodes",
        )
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1  # torchrun itself listens on MASTER_PORT
    logger.info("host {} of {}, by torchrun's variables", rank, world_size)
    return dataclasses.replace(
        settings, nnodes=world_size, node_rank=rank, master_addr=environ["MASTER_ADDR"], master_port=port
    )


def host_group(settings: Settings, environ: Mapping[str, str]) -> HostGroup | None:
    """The hosts that `settings` name; None for one host. Raises StartupError naming the setting that is wrong."""
    nnodes, node_rank = settings.nnodes, settings.node_rank
    if node_rank >= nnodes:
        raise StartupError(
            f"--node-rank {node_rank}: hosts are numbered from 0 to --nnodes - 1, which is {nnodes - 1}",
            param="node_rank",
        )
    if nnodes == 1:
        return None
    shards = settings.shards
    if shards == "auto":
        raise StartupError(
            "--shards auto counts the GPUs of one host; with --nnodes, set the number of ranks on all hosts together",
            param="shards",
        )
    if shards % nnodes:
        raise StartupError(
            f"--nnodes {nnodes} does not divide --shards {shards}; every host runs the same number of ranks",
            param="nnodes",
        )
    if not settings.master_addr:
        raise StartupError("--nnodes needs --master-addr: an address of the first host", param="master_addr")
    key = HostKey.load(settings.host_key_file, environ)
    address, port = _resolved(settings.master_addr), settings.master_port
    return HostGroup(nnodes, node_rank, shards, address, port, key, settings.master_addr)


def interface(address: str) -> str:
    """The network interface from which this host reaches `address`; empty if it cannot be found."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            names = [name for _, name in socket.if_nameindex()]
            return next((name for name in names if own in _addresses(name, probe)), "")
    except OSError:
        return ""


def _addresses(name: str, probe: socket.socket) -> list[str]:
    """An interface's addresses of the family of `probe`: all for IPv6, the first for IPv4."""
    if probe.family == socket.AF_INET6:
        lines = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        return [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[0])) for line in lines if line[-1] == name]
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # the interface has no address
        return []
    return [socket.inet_ntoa(answer[20:24])]


def _resolved(name: str) -> str:
    """The IP address of `name`. Raises StartupError."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise StartupError(
            f"--master-addr {name} has no address: {error.strerror}; use the first host's IP address",
            param="master_addr",
        ) from error
