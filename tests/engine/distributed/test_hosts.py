"""Which hosts the settings and torchrun's variables name, and where each rank runs."""

from __future__ import annotations

from typing import Any

import pytest
from support.host_groups import KEY, loopback_group

from motet.core.errors import StartupError
from motet.core.settings import Settings
from motet.engine.distributed.hosts import RANKS, host_group, interface, with_torchrun

ENVIRON = {"MOTET_HOST_KEY": KEY}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}


def settings(**changes: Any) -> Settings:
    """Settings of the first of two hosts, with `changes`."""
    return Settings(**({"nnodes": 2, "shards": 4, "master_addr": "127.0.0.1"} | changes))


def test_one_host_needs_nothing() -> None:
    assert host_group(Settings(shards=4), {}) is None


def test_ranks_and_addresses() -> None:
    group = host_group(settings(node_rank=1, master_port=4000), ENVIRON)
    assert group is not None
    assert [list(group.ranks(node_rank)) for node_rank in (0, 1)] == [[0, 1], [2, 3]]
    assert group.endpoint(RANKS) == "tcp://127.0.0.1:4001"
    six = host_group(settings(master_addr="::1"), ENVIRON)
    assert six is not None
    assert six.endpoint(RANKS) == "tcp://[::1]:29501"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_rank": 2}, "--node-rank 2: .* which is 1"),
        ({"nnodes": 1, "node_rank": 1}, "--node-rank 1: .* which is 0"),
        ({"shards": 3}, "--nnodes 2 does not divide --shards 3"),
        ({"shards": "auto"}, "--shards auto counts the GPUs of one host"),
        ({"master_addr": ""}, "--nnodes needs --master-addr"),
        ({"master_addr": "no.such.host.invalid"}, "--master-addr no.such.host.invalid"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        host_group(settings(**changes), ENVIRON)


def test_torchrun_names_the_hosts() -> None:
    found = with_torchrun(Settings(), TORCHRUN)
    assert (found.nnodes, found.node_rank, found.master_addr, found.master_port) == (2, 1, "10.0.0.1", 29400)
    agent = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert with_torchrun(Settings(), agent).master_port == 29401, "torchrun listens on MASTER_PORT itself"


@pytest.mark.parametrize("environ", [{}, TORCHRUN | {"WORLD_SIZE": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_without_torchrun_s_hosts_the_settings_stay(environ: dict[str, str]) -> None:
    assert with_torchrun(Settings(), environ) == Settings()


def test_settings_go_before_torchrun() -> None:
    assert with_torchrun(settings(), TORCHRUN) == settings()


def test_torchrun_must_start_one_process_on_each_host() -> None:
    with pytest.raises(StartupError, match="--nproc-per-node 1"):
        with_torchrun(Settings(), TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"})


def test_the_interface_is_that_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (interface("127.0.0.1"), interface("::1")) == ("lo", "lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    variables = loopback_group().variables()
    assert variables == {"MOTET_HOST_KEY": KEY, "NCCL_SOCKET_IFNAME": "lo"}, "the user's own setting stays"
