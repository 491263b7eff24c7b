"""Faults of the real server: killed ranks, clients that disconnect, shutdown, and failed starts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from support.server import Server, free_port, serving

LONG = {"model": "", "prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "stream": True}

LINE = re.compile(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) ")


@pytest.fixture(scope="module")
def server(smollm2_directory: Path) -> Iterator[Server]:
    """A server that these tests may damage."""
    with serving("--drain-seconds", "2") as running:
        yield running


def rank_processes(server: Server) -> list[psutil.Process]:
    """The server's rank processes."""
    return [c for c in psutil.Process(server.process.pid).children() if "motet.engine.worker" in c.cmdline()]


def events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


def test_a_killed_rank_fails_its_requests_and_the_engine_restarts(server: Server) -> None:
    body = {"model": "pirate", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            stream = events(response)
            next(stream)
            rank_processes(server)[0].send_signal(signal.SIGKILL)
            last = list(stream)[-1]
        assert last["error"]["code"] == "engine_unavailable"
        refused = client.post("/v1/completions", json={"model": "", "prompt": "a", "max_tokens": 1})
        assert (refused.status_code, server.health()[0]) == (503, 503)
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.headers["retry-after"]
        server.wait_ready()
        assert client.post("/v1/chat/completions", json=body).status_code == 200, "the adapter is registered again"
    lines = [line for line in server.log.read_text().splitlines() if line and not line.startswith(("Motet", "Try it"))]
    assert [line for line in lines if not LINE.match(line)] == [], "every event is one log line"


def test_a_client_that_disconnects_frees_its_blocks(server: Server) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            stream = events(response)  # dropped, it would close the response
            next(stream)
            assert client.get("/health").json()["engine"]["running"] == 1
        deadline = time.monotonic() + 3
        while (stats := client.get("/health").json()["engine"])["running"] and time.monotonic() < deadline:
            time.sleep(0.02)
    assert stats["running"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]


@pytest.fixture
def terminal() -> Iterator[None]:
    """Reset signal handlers to those of a terminal, even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_shutdown_drains_and_leaves_nothing_behind(number: signal.Signals, smollm2_directory: Path) -> None:
    with serving("--drain-seconds", "1") as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) >= 3
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            stream = events(response)
            next(stream)
            begun = time.monotonic()
            server.process.send_signal(number)
            for child in family if number != signal.SIGTERM else ():  # a terminal tells all of its group
                if os.getpgid(child.pid) == os.getpgid(server.process.pid):
                    child.send_signal(number)
            received = list(stream)
        code = server.process.wait(10)
        assert time.monotonic() - begun < 10
    assert len(received) > 3, "the stream continued during the drain"
    assert received[-1]["error"]["code"] == "shutting_down"
    assert code == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_children_do_not_outlive_a_killed_supervisor(smollm2_directory: Path) -> None:
    with serving() as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive


def failed_start(*arguments: str) -> str:
    """Run `motet serve`, which must end with exit code 2 and one line from Motet; returns its stderr."""
    command = [sys.executable, "-m", "motet", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("motet")]
    assert len(lines) == 1, lines
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_in_use() -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port" in failed_start("--port", str(taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model", "/nowhere/at/all"), "--model"),
        pytest.param(("--model", "missing.gguf"), "missing.gguf", marks=pytest.mark.slow),
        pytest.param(("--shards", "0"), "--shards", marks=pytest.mark.slow),
        pytest.param(("--shards", "2"), "--shards 2", marks=pytest.mark.slow),  # 9 heads
        pytest.param(("--dtype", "bfloat16", "--device", "cpu"), "--dtype", marks=pytest.mark.slow),
        pytest.param(("--max-context", "100000"), "--max-context", marks=pytest.mark.slow),
        pytest.param(("--kv-memory", "lots"), "--kv-memory", marks=pytest.mark.slow),
        pytest.param(("--kv-memory", "1MiB", "--max-context", "4096"), "--kv-memory", marks=pytest.mark.slow),
        pytest.param(("--kv-memory", "900GiB", "--max-sequences", "4096"), "--kv-memory", marks=pytest.mark.slow),
        (("--api-keys", "/nowhere/keys"), "--api-keys"),
        (("--no-such-flag",), "--no-such-flag"),
        pytest.param(("--default-source", "nowhere"), "--default-source", marks=pytest.mark.slow),
        pytest.param(("--tool-parser", "nobody"), "--tool-parser nobody", marks=pytest.mark.slow),
        pytest.param(("--data-dir", "/proc/nowhere"), "/proc/nowhere cannot be used", marks=pytest.mark.slow),
        (("--data-dir", "/dev/null"), "/dev/null cannot be used"),
    ],
)
def test_a_failed_start(arguments: tuple[str, ...], named: str) -> None:
    assert named in failed_start("--port", str(free_port()), *arguments)
