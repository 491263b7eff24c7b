"""One engine on two hosts, which are two network namespaces: equality with PEFT, lost hosts, a wrong key.

The ranks are real and use gloo. Each host has a copy of the model, and only the first one has the adapter.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.equality import Scored, assert_close
from support.network_namespaces import Host, available, two_hosts
from support.peft_oracle import AdapterCase, Oracle, write_adapter
from support.tiny_chat_model import write_chat_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="this user cannot make network namespaces"),
]

SECRET = "c0ffee" * 8
PROMPTS = [[(11 * number + 7 * i) % 259 for i in range(5 + 9 * number)] for number in range(4)]
START_SECONDS = 400.0

ENGINE = """
import asyncio, json, sys
from pathlib import Path
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.llm import Engine

model, adapter, prompts, settings = json.loads(sys.argv[1])

async def main():
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0)
    async with Engine.open(Path(model), Settings(**settings)) as engine:
        prepared = await engine.adapter(Path(adapter))
        calls = [engine.complete(prompt, params, a) for prompt in prompts for a in (None, prepared)]
        answers = await asyncio.gather(*calls)
    print(json.dumps([[(e.token, e.logprob) for e in answer] for answer in answers]))

asyncio.run(main())
"""


class Cluster:
    """The two hosts and their files."""

    def __init__(self, directory: Path, hosts: tuple[Host, Host]) -> None:
        self.first, self.second = hosts
        self.directory = directory
        self.private = directory / "first-host"
        self.model = write_chat_model(self.private / "model")
        self.copy = directory / "model-copy"
        shutil.copytree(self.model, self.copy)
        oracle = Oracle(self.model)
        self.adapter = write_adapter(oracle.base, AdapterCase(8, "plain", "all"), self.private / "adapters" / "tiny")
        self.oracle = oracle
        self.key = self.write_key("host.key", SECRET)
        self.processes: list[subprocess.Popen[bytes]] = []

    def write_key(self, name: str, secret: str) -> Path:
        """A file with a secret."""
        path = self.directory / name
        path.write_text(secret)
        path.chmod(0o600)
        return path

    def log(self, name: str) -> Path:
        """A process's log."""
        return self.directory / f"{name}.log"

    def agent(self, key: Path | None = None, name: str = "agent") -> subprocess.Popen[bytes]:
        """Start the second host's agent."""
        command = [*self.serve(1, key or self.key), "--model", str(self.copy)]
        self.processes.append(self.second.start(command, self.log(name)))
        return self.processes[-1]

    def serve(self, node_rank: int, key: Path) -> list[str]:
        """The command `motet serve` with the flags that both hosts have."""
        command = [sys.executable, "-m", "motet", "serve", "--device", "cpu", "--threads", "1", "--shards", "2"]
        command += ["--nnodes", "2", "--node-rank", str(node_rank), "--master-addr", self.first.address]
        return [*command, "--host-key-file", str(key)]

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts on which nothing runs yet."""
    directory = tmp_path_factory.mktemp("hosts")
    with two_hosts(directory) as hosts:
        yield Cluster(directory, hosts)


@pytest.fixture(autouse=True)
def ended(cluster: Cluster) -> Iterator[None]:
    """End a test's processes."""
    yield
    cluster.close()
    cluster.processes.clear()


def until(done: Callable[[], Any], seconds: float, what: str) -> float:
    """Wait until `done`; returns the seconds that it took."""
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < seconds, what
        time.sleep(0.1)
    return time.monotonic() - begun


def test_answers_equal_peft_with_an_adapter_that_one_host_has(cluster: Cluster) -> None:
    cluster.agent()
    settings = {"device": "cpu", "shards": 2, "threads": 1, "nnodes": 2, "kv_memory": "64MiB", "adapter_slots": 4}
    settings |= {"master_addr": cluster.first.address, "host_key_file": str(cluster.key)}
    arguments = json.dumps([str(cluster.model), str(cluster.adapter), PROMPTS, settings])
    engine = cluster.first.start([sys.executable, "-c", ENGINE, arguments], cluster.log("engine"))
    cluster.processes.append(engine)
    assert engine.wait(START_SECONDS) == 0, cluster.log("engine").read_text()
    answers = json.loads(cluster.log("engine").read_text().splitlines()[-1])
    cases = [(prompt, adapter) for prompt in PROMPTS for adapter in (None, cluster.adapter)]
    for (prompt, adapter), answer in zip(cases, answers, strict=True):
        reference, margins = cluster.oracle.score(prompt, [token for token, _ in answer], adapter)
        assert_close([Scored(*pair) for pair in answer], reference, margins)
    (shipped,) = (cluster.second.cache / "shipped").iterdir()
    (prepared,) = (cluster.first.cache / "prepared").glob("*/1.safetensors")
    assert shipped.read_bytes() == prepared.read_bytes()
    until(lambda: not ranks(cluster), 20, "the agent's ranks have ended")


def ranks(cluster: Cluster) -> list[psutil.Process]:
    """The ranks of the second host."""
    found = []
    for process in cluster.processes:
        if process.poll() is None and str(cluster.copy) in psutil.Process(process.pid).cmdline():
            children = psutil.Process(process.pid).children(recursive=True)
            found += [child for child in children if "motet.engine.worker" in child.cmdline()]
    return found


@pytest.fixture
def health(cluster: Cluster) -> Callable[[], tuple[int, str]]:
    """Starts the server on the first host; returns a function that reads /health: its status and text."""
    command = [*cluster.serve(0, cluster.key), "--model", str(cluster.model), "--port", "8080"]
    command += ["--adapter-root", str(cluster.adapter.parent), "--data-dir", str(cluster.directory / "data")]
    command += ["--kv-memory", "64MiB", "--adapter-slots", "4", "--model-name", "base"]
    cluster.processes.append(cluster.first.start(command, cluster.log("server")))

    def request() -> tuple[int, str]:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8080/health", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    return lambda: cluster.first.call(request)


def complete(cluster: Cluster) -> list[int]:
    """Ten greedy tokens of the adapter, from the server."""
    body = {"model": "local:tiny", "prompt": PROMPTS[1], "max_tokens": 10, "temperature": 0, "ignore_eos": True}
    data = json.dumps(body | {"return_token_ids": True}).encode()
    headers = {"content-type": "application/json"}

    def request() -> list[int]:
        with urllib.request.urlopen(
            urllib.request.Request("http://127.0.0.1:8080/v1/completions", data, headers), timeout=60
        ) as response:
            return list(json.load(response)["choices"][0]["token_ids"])

    return cluster.first.call(request)


def test_lost_hosts_come_back(cluster: Cluster, health: Callable[[], tuple[int, str]]) -> None:
    until(lambda: "waiting for host 1" in health()[1], 60, "the server waits for its host")
    assert health()[0] == 503

    wrong = cluster.agent(cluster.write_key("wrong.key", "decade" * 8), "wrong-agent")
    assert wrong.wait(60) == 2
    assert "refuses this host's key" in cluster.log("wrong-agent").read_text()
    assert "its host key is not this host's" in cluster.log("server").read_text()

    agent = cluster.agent()
    until(lambda: health()[0] == 200, START_SECONDS, "the server is ready")
    expected = complete(cluster)

    family = psutil.Process(agent.pid).children(recursive=True)
    agent.send_signal(signal.SIGKILL)
    assert until(lambda: "waiting for host 1" in health()[1], 15, "the lost host is noticed") < 10
    assert health()[0] == 503
    assert "10.77.0.2) is lost: it has not responded for 5 s" in cluster.log("server").read_text()
    assert psutil.wait_procs(family, timeout=5)[1] == [], "its ranks end with the agent"
    cluster.agent()
    until(lambda: health()[0] == 200, START_SECONDS, "the server is ready again")
    assert complete(cluster) == expected

    (rank,) = ranks(cluster)
    cluster.second.cable("down")
    assert until(lambda: "waiting for host 1" in health()[1], 15, "the cut cable is noticed") < 10
    until(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE, 10, "the other host ends its rank")
    cluster.second.cable("up")
    until(lambda: health()[0] == 200, START_SECONDS, "the server is ready when the cable is back")
    assert complete(cluster) == expected

    text = "".join(path.read_text() for path in cluster.directory.glob("*.log"))
    arguments = " ".join(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    assert SECRET not in text
    assert SECRET not in arguments
