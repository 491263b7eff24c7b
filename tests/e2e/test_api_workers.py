"""Two API processes with one engine: shared loads, and recovery when one of the processes is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.fake_hub import Hub
from support.promql import queries, selectors
from support.server import Server, serving

PIRATE = Path(__file__).parents[2] / "plugins" / "demo" / "adapters" / "pirate"
TOKEN = "hf_crew"
REFUSED_CONFIG = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "arrow_config": {"top_k": 3}}
LONG = {"model": "", "prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True, "stream": True}


@dataclass(frozen=True)
class Deployment:
    """A server with two API workers, its hub and its cache."""

    server: Server
    hub: Hub
    cache: Path

    def processes(self, module: str) -> list[psutil.Process]:
        """The server's processes that run `module`."""
        found = []
        for child in psutil.Process(self.server.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if module in child.cmdline():
                    found.append(child)
        return found

    def workers(self) -> list[psutil.Process]:
        """The API workers."""
        return self.processes("motet.api.worker")

    def ask(self, model: str, token: str | None = None) -> httpx2.Response:
        """A short answer, over a connection of its own."""
        body = {"model": model, "messages": [{"role": "user", "content": "Ahoy?"}], "max_tokens": 2}
        headers = {"x-adapter-token": token} if token else {}
        return httpx2.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    def engine(self) -> dict[str, int]:
        """The engine's counters."""
        stats = self.server.health()[1]["engine"]
        assert isinstance(stats, dict)
        return stats


@pytest.fixture(scope="module")
def deployment(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server with an empty cache, whose processes these tests may kill."""
    cache = tmp_path_factory.mktemp("cache")
    files = {path.name: path.read_bytes() for path in PIRATE.iterdir()}
    with Hub() as hub:
        hub.add("org/pirate", files, tokens=[TOKEN])
        hub.add("org/late", files)
        hub.known_tokens.add("hf_stranger")
        env = {**os.environ, "HF_ENDPOINT": hub.url, "MOTET_CACHE": str(cache)}
        root = tmp_path_factory.mktemp("adapters")
        (root / "arrow").mkdir()
        (root / "arrow" / "adapter_config.json").write_text(json.dumps(REFUSED_CONFIG))
        model = ("--model", str(smollm2_directory), "--drain-seconds", "2", "--adapter-root", str(root))
        with serving("--api-workers", "2", *model, env=env) as server:
            yield Deployment(server, hub, cache)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for `condition`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def clients(worker: psutil.Process) -> set[int]:
    """The client ports of a worker's connections."""
    return {c.raddr.port for c in worker.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED}


def port(response: httpx2.Response) -> int:
    """The client port of a response's connection."""
    return int(response.extensions["network_stream"].get_extra_info("client_addr")[1])


@contextlib.contextmanager
def streams(deployment: Deployment, per_worker: int) -> Iterator[list[tuple[httpx2.Response, Iterator[str]]]]:
    """Start long answers until each worker has this many."""
    with contextlib.ExitStack() as stack:
        opened = []
        while min(len(clients(worker)) for worker in deployment.workers()) < per_worker:
            assert len(opened) < 40, "one worker takes every connection"
            client = stack.enter_context(httpx2.Client(timeout=60))
            response = stack.enter_context(client.stream("POST", f"{deployment.server.url}/v1/completions", json=LONG))
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            opened.append((response, lines))
        yield opened


def test_a_cold_adapter_is_loaded_once_for_all_workers(deployment: Deployment) -> None:
    assert len(deployment.workers()) == 2
    assert len(deployment.processes("motet.api.adapters.registry_process")) == 1
    deployment.hub.delay = 0.2  # so that all ask before it is there
    with ThreadPoolExecutor(24) as threads, streams(deployment, per_worker=1):
        tokens = [TOKEN, TOKEN, TOKEN, "hf_stranger"] * 6
        answers = list(threads.map(lambda token: deployment.ask("org/pirate", token), tokens))
    deployment.hub.delay = 0.0
    allowed = [answer.status_code for answer, token in zip(answers, tokens, strict=True) if token == TOKEN]
    assert allowed == [200] * 18
    strangers = [answer for answer, token in zip(answers, tokens, strict=True) if token != TOKEN]
    assert {answer.status_code for answer in strangers} <= {403, 404}
    assert deployment.hub.count("GET", "adapter_model.safetensors") == 1
    assert len(list((deployment.cache / "prepared").iterdir())) == 1
    assert deployment.ask("org/pirate").status_code in (401, 404), "nobody is spared the hub's word"
    assert TOKEN not in deployment.server.log.read_text()


def test_a_killed_worker_fails_only_its_own_requests(deployment: Deployment) -> None:
    with streams(deployment, per_worker=2) as opened:
        until(lambda: deployment.engine()["running"] == len(opened))
        victim, _ = deployment.workers()
        lost = [one for one in opened if port(one[0]) in clients(victim)]
        kept = [one for one in opened if one not in lost]
        assert min(len(lost), len(kept)) >= 2
        victim.send_signal(signal.SIGKILL)
        until(lambda: deployment.engine()["running"] == len(kept))
        for _, lines in lost:
            with pytest.raises(httpx2.TransportError):
                list(lines)
        for _, lines in kept:
            for _ in range(10):
                assert "error" not in json.loads(next(lines).removeprefix("data: "))
    until(lambda: len(deployment.workers()) == 2 and victim.pid not in [w.pid for w in deployment.workers()])
    stats = deployment.engine()
    until(lambda: deployment.engine()["blocks_free"] == stats["blocks_total"])
    with streams(deployment, per_worker=1):  # the new one answers too
        assert deployment.ask("org/pirate", TOKEN).status_code == 200
    until(lambda: deployment.engine()["running"] == 0)
    assert deployment.server.log.read_text().count("Motet serves") == 1


def test_a_killed_registry_fails_its_calls_and_restarts(deployment: Deployment) -> None:
    deployment.hub.delay = 3.0
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(deployment.ask, "org/late")
        until(lambda: any("org/late" in path for _, path in deployment.hub.requests))
        (registry,) = deployment.processes("motet.api.adapters.registry_process")
        begun = time.monotonic()
        registry.send_signal(signal.SIGKILL)
        answer = asked.result()
        assert time.monotonic() - begun < 1.0
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    deployment.hub.delay = 0.0
    assert deployment.ask("").status_code == 200
    assert deployment.ask("org/late").status_code == 200


def test_the_workers_share_their_counters(deployment: Deployment) -> None:
    def answered() -> float:
        text = httpx2.get(f"{deployment.server.url}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if line.startswith("motet_requests_total")]
        return sum(float(line.split()[-1]) for line in lines if "/v1/chat/completions" in line)

    before = answered()
    with ThreadPoolExecutor(12) as threads:
        assert {answer.status_code for answer in threads.map(deployment.ask, [""] * 12)} == {200}
    seen = {answered() for _ in range(8)}  # whichever worker it is that tells
    assert seen == {before + 12}


def test_the_dashboard_and_the_alerts_read_metrics_of_a_real_server(deployment: Deployment) -> None:
    assert deployment.ask("demo:pirate").status_code == 200
    assert deployment.ask("demo:nobody").status_code == 404
    text = httpx2.get(f"{deployment.server.url}/metrics", timeout=10).text
    exposed: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            exposed.setdefault(sample.name, set()).update(sample.labels)
    read = [s for query in queries().values() for s in selectors(query) if s.metric != "up"]
    assert {s.metric for s in read} - exposed.keys() == set()
    assert [s for s in read if s.labels - exposed[s.metric] - {"instance"}] == []
    (routing,) = [s for f in text_string_to_metric_families(text) for s in f.samples if "lora_requests" in s.name]
    assert "demo:pirate" in routing.labels["running_lora_adapters"].split(",")
    assert routing.labels["max_lora"] == "32"
    assert abs(routing.value - time.time()) < 60


def test_each_request_and_each_load_is_logged(deployment: Deployment) -> None:
    headers = {"x-request-id": "e2e-line"}
    body = {"model": "demo:terse", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}
    httpx2.post(f"{deployment.server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    until(lambda: "request_id=e2e-line" in deployment.server.log.read_text())
    log = deployment.server.log.read_text()
    (line,) = [line for line in log.splitlines() if "request_id=e2e-line" in line]
    assert "adapter=demo:terse@" in line
    assert "completion_tokens=2" in line
    until(lambda: "adapter cannot be served: " in deployment.server.log.read_text())
    log = deployment.server.log.read_text()
    assert "adapters found source=demo adapters=3" in log
    # Once for each start of the registry, which other tests of this module end.
    refused = [line for line in log.splitlines() if "adapter cannot be served: " in line]
    assert all("Arrow routing is not supported adapter=local:arrow" in line for line in refused)
    for message in ("adapter fetched adapter=demo:terse", "adapter prepared adapter=demo:terse", "engine ready"):
        assert message in log, message
    assert "adapter installed adapter=demo:terse" in log
