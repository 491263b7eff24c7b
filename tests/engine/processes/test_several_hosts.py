"""An engine on several hosts: agents join, are refused by name, get lost and come back. The ranks are scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from loguru import logger
from support.host_groups import KEY, OTHER_KEY, free_ports, loopback_group
from support.scripted_ranks import DIES_LATER, KILLED, REFUSES, SERVE, WAITS, Launcher, tick_until

from motet.core.child_processes import ChildStart
from motet.core.errors import StartupError
from motet.core.messages import EngineState
from motet.core.settings import Settings
from motet.engine.distributed.hosts import AGENTS
from motet.engine.engine_config import EngineConfig
from motet.engine.processes import engine_processes, host_agent, host_messages, other_hosts
from motet.engine.processes.engine_processes import EngineProcesses
from motet.engine.processes.host_agent import HostAgent, LocalConfig, LocalRanks
from motet.engine.processes.host_messages import JoinHosts, RanksEnded
from motet.engine.processes.other_hosts import HostFailure
from motet.engine.processes.several_hosts import host_facts
from motet.engine.worker import WorkerSpec


class Agent:
    """Host 1's agent, in a thread."""

    def __init__(self, port: int, model: Path, key: str = KEY, **facts: Any) -> None:
        group = loopback_group(1, port, key)
        config = LocalConfig(EngineConfig.from_settings(Settings(threads=3), model), None)
        self.ranks = LocalRanks(group, config)
        joined: JoinHosts = msgspec.structs.replace(host_facts(group, model), **facts)
        self.agent = HostAgent(group, joined, self.ranks)
        self.error: StartupError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.agent.run(self._stop)
        except StartupError as error:
            self.error = error

    @property
    def running(self) -> bool:
        """Whether the agent has not ended."""
        return self._thread.is_alive()

    def die(self) -> None:
        """End the agent as if it was killed: it does not say so to the first host."""
        self.agent._send = lambda message: None  # type: ignore[method-assign]
        self.stop()

    def stop(self) -> None:
        """End the agent."""
        self._stop.set()
        self._thread.join()


class Hosts:
    """The first host, and the agents that a test starts. Both hosts' ranks are scripts."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = directory / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps({"hidden_size": 8}))
        self.port = free_ports()
        self.first, self.other = Launcher([SERVE]), Launcher([SERVE])
        self.specs: list[WorkerSpec] = []
        self.variables: list[dict[str, str]] = []
        self.agents: list[Agent] = []
        self.log: list[str] = []
        self._stopped = False
        loader = Launcher([SERVE])

        def start(module: str, spec: Any, start: ChildStart, **options: Any) -> subprocess.Popen[bytes]:
            if module.endswith("loader"):
                return loader(start)
            self.specs.append(spec)
            self.variables.append(options["variables"])
            return (self.other if spec.tp_rank else self.first)(start)

        for module in (engine_processes, host_agent):
            monkeypatch.setattr(module, "start_child", start)
        for module in (host_messages, host_agent, other_hosts):
            monkeypatch.setattr(module, "LOST_SECONDS", 2.0)
        monkeypatch.setattr(other_hosts, "RIVAL_SECONDS", 4.0)
        config = EngineConfig.from_settings(Settings(shards=2, nnodes=2, threads=2), self.model)
        self.engine = EngineProcesses(config, "tiny", loopback_group(0, self.port))
        self._sink = logger.add(lambda message: self.log.append(message.record["message"]), level="INFO")
        self.engine.start()

    def join(self, **facts: Any) -> Agent:
        """Start an agent."""
        self.agents.append(Agent(self.port, facts.pop("model_directory", self.model), **facts))
        return self.agents[-1]

    def until(self, done: Callable[[], Any], seconds: float = 20.0) -> None:
        """Tick until `done`."""
        tick_until(self.engine.tick, done, seconds)

    def serving(self, engines: int) -> Callable[[], bool]:
        """Whether both hosts' ranks of the `engines`th engine serve."""
        return lambda: len(self.first.starts) == len(self.other.starts) == engines and self.engine._heartbeat.serving

    def logged(self, text: str) -> Callable[[], bool]:
        """Whether a line with `text` was logged."""
        return lambda: any(text in line for line in self.log)

    def stop_engine(self) -> None:
        """End the first host's processes."""
        if not self._stopped:
            self._stopped = True
            self.engine.stop()

    def close(self) -> None:
        """End everything."""
        self.stop_engine()
        for agent in self.agents:
            agent.stop()
        logger.remove(self._sink)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Iterator[Hosts]:
    """The first of two hosts, whose engine waits for the other one."""
    made = Hosts(tmp_path, monkeypatch)
    yield made
    made.close()
    assert list(temporary.glob("motet-run-*")) == []


def test_the_ranks_start_when_all_hosts_have_joined(hosts: Hosts) -> None:
    hosts.until(hosts.logged("the engine is starting: waiting for host 1"))
    assert hosts.first.starts == []
    hosts.join()
    hosts.until(hosts.serving(1))
    rank_0, rank_1 = sorted(hosts.specs, key=lambda spec: spec.tp_rank)
    assert (rank_0.local_rank, rank_1.local_rank) == (0, 0)
    assert rank_0.store == rank_1.store == f"tcp://127.0.0.1:{hosts.port + 2}/{rank_0.engine_id}"
    assert rank_0.ranks_address.startswith("ipc://")
    assert rank_0.hosts_address == rank_1.ranks_address == f"tcp://127.0.0.1:{hosts.port + 1}"
    assert (rank_0.files_address, rank_1.files_address) == ("", f"tcp://127.0.0.1:{hosts.port + 3}")
    assert (rank_0.engine.threads, rank_1.engine.threads) == (2, 3), "each host has threads of its own"
    assert all(KEY not in msgspec.json.encode(spec).decode() for spec in hosts.specs), "arguments are public"
    assert [variables["MOTET_HOST_KEY"] for variables in hosts.variables] == [KEY, KEY]
    assert [variables["GLOO_SOCKET_IFNAME"] for variables in hosts.variables] == ["lo", "lo"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"versions": "0.0.9 with torch 2.13.0"}, "Motet is 0.0.9 with torch 2.13.0 there and"),
        ({"shards": 4}, "--shards is 4 there and 2 on the first host"),
        ({"nnodes": 3}, "--nnodes is 3 there and 2 on the first host"),
        ({"node_rank": 2}, "--node-rank 2 is not one of 1 to 1"),
    ],
)
def test_a_different_host_is_refused_by_name_on_both_sides(hosts: Hosts, facts: dict[str, Any], message: str) -> None:
    agent = hosts.join(**facts)
    hosts.until(lambda: not agent.running)
    assert message in str(agent.error)
    assert hosts.logged(message)()
    assert hosts.first.starts == []


def test_a_host_with_another_model_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"hidden_size": 16}))
    agent = hosts.join(model_directory=other)
    hosts.until(lambda: not agent.running)
    assert "the model's fingerprint is" in str(agent.error)
    assert hosts.logged("use the same --model, with the same files")()


def test_a_wrong_key_is_named_on_both_sides(hosts: Hosts) -> None:
    agent = hosts.join(key=OTHER_KEY)
    hosts.until(lambda: not agent.running)
    hosts.until(hosts.logged("its host key is not this host's"))
    assert "refuses this host's key; set the same --host-key-file" in str(agent.error)
    assert not any(key in line for key in (KEY, OTHER_KEY) for line in [*hosts.log, str(agent.error)])


def test_an_unreadable_message_is_refused(hosts: Hosts) -> None:
    group = loopback_group(1, hosts.port)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        group.key.secure_client(socket)
        socket.connect(group.endpoint(AGENTS))
        socket.send(b"\xc1")
        assert socket.poll(5000)
        answer = msgspec.msgpack.decode(socket.recv(), type=host_messages.ToAgent)
    assert "cannot read this host's messages" in answer.reason


def states_of(engine: EngineProcesses, context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """A socket that receives the engine's states."""
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(engine.state_address)
    return socket


def test_a_lost_host_ends_the_engine_until_it_is_back(hosts: Hosts) -> None:
    agent = hosts.join()
    hosts.until(hosts.serving(1))
    states: list[EngineState] = []
    with zmq.Context() as context, states_of(hosts.engine, context) as socket:

        def waits() -> bool:
            while socket.poll(0):
                states.append(msgspec.msgpack.decode(socket.recv(), type=EngineState))
            return bool(states) and states[-1].state == "starting"

        time.sleep(0.2)  # until the subscription has arrived
        agent.die()
        hosts.until(waits)
    assert [state.state for state in states[:2]] == ["down", "starting"]
    assert states[-1].reason == "the engine is starting (waiting for host 1)"
    assert any("host 1 (" in line and "is lost: it has not responded for 2 s" in line for line in hosts.log)
    assert hosts.engine.process_ids() == [], "rank 0 has ended"
    hosts.join()
    hosts.until(hosts.serving(2))
    assert [start.restarted for start in (hosts.first.starts[1], hosts.other.starts[1])] == [True, True]


@pytest.mark.slow
def test_a_rank_that_dies_on_either_host_restarts_both(hosts: Hosts) -> None:
    hosts.first.bodies, hosts.other.bodies = [SERVE, DIES_LATER, SERVE], [DIES_LATER, SERVE]
    hosts.join()
    hosts.until(hosts.serving(3), 40)
    assert hosts.logged("rank 1 ended with 1")()


def test_a_rank_that_is_killed_at_the_start_ends_both_hosts(hosts: Hosts) -> None:
    hosts.first.bodies, hosts.other.bodies = [WAITS], [KILLED]
    agent = hosts.join()
    with pytest.raises(StartupError, match=r"host 1 .*was ended by SIGKILL .*--kv-memory"):
        hosts.until(lambda: False)
    hosts.stop_engine()
    agent._thread.join(5)
    assert "was ended by SIGKILL" in str(agent.error)


def test_the_cause_of_a_failed_start_is_reported_not_its_consequence(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 failed because rank 1 was killed, or because a host was lost, and was noticed first."""
    several = hosts.engine._others
    assert several is not None
    others, consequence = several._others, StartupError("connection closed by peer")
    for cause, message in (
        (HostFailure("rank 1 was killed", RanksEnded("e", "killed", final=True, killed=True)), "rank 1 was killed"),
        (HostFailure("rank 1 failed", RanksEnded("e", "", final=True, killed=False)), "connection closed by peer"),
    ):
        several.stop(consequence)
        others._failures.put(cause)
        several.poll("e")
        monkeypatch.setattr(others, "absent", lambda: "")
        with pytest.raises(StartupError, match=message):
            several.absent()
        several._failure = None
    several.stop(consequence)
    others._failures.put(HostFailure("host 1 is lost"))
    assert several.poll("e") == "host 1 is lost"
    assert several.absent() == "", "the engine starts again"


def test_a_rank_that_refuses_to_start_ends_both_hosts(hosts: Hosts) -> None:
    hosts.first.bodies, hosts.other.bodies = [WAITS], [REFUSES]
    agent = hosts.join()
    with pytest.raises(StartupError, match=r"host 1 \(.*\): --dtype is wrong"):
        hosts.until(lambda: False)
    hosts.stop_engine()
    agent._thread.join(5)
    assert "--dtype is wrong" in str(agent.error)


def test_the_first_host_s_end_ends_the_ranks_and_the_agent_waits(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = hosts.join()
    hosts.until(hosts.serving(1))
    (rank,) = agent.ranks._processes
    monkeypatch.setattr(hosts.engine._others, "close", lambda: None)  # as if killed: it sends nothing
    others = hosts.engine._others
    assert others is not None
    others._others._closing.set()
    rank.wait(10)
    assert agent.running
    assert hosts.logged("the first host (localhost) has not responded for 2 s")()
    others._others.close()
    others._files.close()


def test_a_stopped_first_host_says_so(hosts: Hosts) -> None:
    agent = hosts.join()
    hosts.until(hosts.serving(1))
    (rank,) = agent.ranks._processes
    hosts.stop_engine()
    rank.wait(5)
    deadline = time.monotonic() + 5
    while not hosts.logged("the first host (localhost) was stopped")() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hosts.logged("the first host (localhost) was stopped; ending this host's ranks until it is back")()
    assert agent.running


@pytest.mark.slow
def test_a_second_agent_with_the_same_number_is_refused(hosts: Hosts) -> None:
    hosts.join()
    hosts.until(hosts.serving(1))
    second = hosts.join()
    hosts.until(lambda: not second.running)
    assert "has already joined with --node-rank 1" in str(second.error)
    assert hosts.serving(1)(), "the first one goes on"


@pytest.mark.slow
def test_an_agent_that_is_started_again_joins_when_the_dead_one_is_lost(hosts: Hosts) -> None:
    agent = hosts.join()
    hosts.until(hosts.serving(1))
    agent.die()
    hosts.join()
    hosts.until(hosts.serving(2))


def test_a_stopped_agent_is_missed_at_once(hosts: Hosts) -> None:
    agent = hosts.join()
    hosts.until(hosts.serving(1))
    begun = time.monotonic()
    agent.stop()
    hosts.until(hosts.logged("is lost: it was stopped"))
    assert time.monotonic() - begun < 2


def test_the_fingerprint_is_of_the_config_and_the_weights(tmp_path: Path) -> None:
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    group = loopback_group()

    def fingerprint() -> str:
        return host_facts(group, tmp_path).model

    config.write_text('{"hidden_size": 8, "transformers_version": "5.0"}')
    weights.write_bytes(bytes(100000))
    first = fingerprint()
    config.write_text('{"transformers_version": "5.1", "hidden_size": 8}')
    assert fingerprint() == first
    weights.write_bytes(b"\1" * 100000)
    assert fingerprint() != first, "another fine-tune of the same shapes"


def test_starting_an_agent_imports_no_torch() -> None:
    program = "import sys, motet.engine.processes.host_agent; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_ports_in_use_are_named(hosts: Hosts) -> None:
    with pytest.raises(StartupError, match=f"cannot listen on tcp://127.0.0.1:{hosts.port}: .*--master-addr"):
        EngineProcesses(hosts.engine.config, "tiny", loopback_group(0, hosts.port))
