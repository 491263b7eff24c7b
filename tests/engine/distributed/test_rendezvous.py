"""The TCP store by which ranks on several hosts find each other."""

from __future__ import annotations

import socket

import pytest
import torch
from support.host_groups import NEEDS_IPV6, free_ports
from torch.distributed.distributed_c10d import PrefixStore

from motet.core.errors import StartupError
from motet.engine.distributed.rendezvous import tcp_store

CPU = torch.device("cpu")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=NEEDS_IPV6)])
def test_engines_do_not_see_each_other_s_keys_and_devices_must_be_equal(host: str) -> None:
    address = f"tcp://{host}:{free_ports()}"
    first = tcp_store(f"{address}/one", 0, CPU)
    first.set("key", "value")
    assert tcp_store(f"{address}/one", 1, CPU).get("key") == b"value"
    assert isinstance(first, PrefixStore)
    PrefixStore("/two", first.underlying_store).set("device", "cpu")
    assert not tcp_store(f"{address}/two", 1, CPU).check(["key"])
    with pytest.raises(StartupError, match="rank 1 would run on cuda and rank 0 on cpu; set --device"):
        tcp_store(f"{address}/one", 1, torch.device("cuda"))


def test_only_the_given_address_is_listened_on() -> None:
    port = free_ports()
    store = tcp_store(f"tcp://127.0.0.1:{port}/one", 0, CPU)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port)) != 0
    assert store.check(["device"])


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}: .*--master-port"):
            tcp_store(f"tcp://127.0.0.1:{port}/one", 0, CPU)
