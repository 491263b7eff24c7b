"""How the ranks of a process group find each other: a file on one host, a TCP store of rank 0 on several."""

from __future__ import annotations

import socket
from datetime import timedelta
from urllib.parse import urlsplit

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from motet.core.errors import StartupError

CONNECT = timedelta(minutes=10)
"""How long a rank waits for the others; an agent ends it earlier if a host is lost."""


def tcp_store(address: str, tp_rank: int, device: torch.device) -> Store:
    """The store at `address`, `tcp://HOST:PORT/ENGINE`, which rank 0 provides; keys of other engines are not seen.

    Raises StartupError if rank 0 has another type of device, or cannot listen.
    """
    parts = urlsplit(address)
    assert parts.hostname is not None, "a host group has an address"
    assert parts.port is not None, "and a port"
    store = PrefixStore(parts.path, _store(parts.hostname, parts.port, tp_rank))
    if tp_rank == 0:
        store.set("device", device.type)
    elif (first := store.get("device").decode()) != device.type:
        raise StartupError(
            f"rank {tp_rank} would run on {device.type} and rank 0 on {first}; set --device to the same on all hosts",
            param="device",
        )
    return store


def _store(host: str, port: int, tp_rank: int) -> TCPStore:
    if tp_rank:
        return TCPStore(host, port, is_master=False, timeout=CONNECT)
    try:
        # A socket of our own, since the store would listen on every address of this host.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --master-port", param="master_port"
        ) from error
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=CONNECT, master_listen_fd=listener.detach()
    )
