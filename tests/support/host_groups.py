"""Hosts of one engine on the loopback interface, for tests."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

import pytest

from motet.engine.distributed.host_key import HostKey
from motet.engine.distributed.hosts import HostGroup

KEY, OTHER_KEY = "0123456789abcdef" * 4, "fedcba9876543210" * 4

NEEDS_IPV6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")


def free_ports() -> int:
    """The first of four consecutive free ports."""
    while True:
        first = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 4):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def loopback_group(node_rank: int = 0, port: int = 0, key: str = KEY) -> HostGroup:
    """One of two hosts with one rank each; `port` is the first host's, or a new one."""
    return HostGroup(2, node_rank, 2, "127.0.0.1", port or free_ports(), HostKey(key), "localhost")
