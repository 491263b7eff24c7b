"""docker/haproxy.cfg in front of three HTTP servers: which replica gets a request, and what a stream's client sees.

Skipped where HAProxy is not installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.server import free_port

CONFIG = Path(__file__).resolve().parents[2] / "docker" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
ADAPTERS = [f"org/adapter-{number}" for number in range(40)]
EVENTS = 4

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")


class Replica(ThreadingHTTPServer):
    """A server that answers each request with its number, and has the stored response `resp_NUMBER`."""

    daemon_threads = True

    def __init__(self, number: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.number, self.ready = number, True
        self.next_event = threading.Semaphore(0)
        self.client_left = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: HAProxy's checks close their connections early."""

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection of a replica."""

    server: Replica
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/ready":
            self.answer(200 if self.server.ready else 503)
        elif self.path.startswith("/v1/responses/"):
            self.answer(200 if self.path.endswith(f"_{self.server.number}") else 404)
        else:
            self.answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/chat/completions?stream":
            self.stream()
        elif self.path == "/v1/chat/completions?silent":
            self.server.next_event.release()
            with suppress(ConnectionResetError):
                assert self.connection.recv(1) == b""
            self.server.client_left.set()
            self.close_connection = True
        else:
            self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "1")
        self.end_headers()
        self.wfile.write(str(self.server.number).encode())

    def stream(self) -> None:
        """Send each event after the first only when the test has received the one before."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in range(EVENTS):
                event = f"data: {number}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                if not self.server.next_event.acquire(timeout=10):
                    self.wfile.write(b"0\r\n")  # fails if the connection is closed
                    return
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.client_left.set()

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


class Proxy:
    """HAProxy with the configuration of docker/, on a free port, for replicas at known addresses."""

    def __init__(self, directory: Path, replicas: list[Replica], factor: int = 0) -> None:
        port = free_port()
        self.url, self.replicas = f"http://127.0.0.1:{port}", replicas
        servers = "\n".join(
            f"    server replica{replica.number} 127.0.0.1:{replica.server_port} check inter 200ms fall 2 rise 1"
            for replica in replicas
        )
        text, backends = re.subn(r"^    server-template .*", servers, CONFIG.read_text(), flags=re.MULTILINE)
        assert backends == text.count("\nbackend "), "each backend has the replicas"
        file = directory / "haproxy.cfg"
        file.write_text(text.replace("bind :8080", f"bind 127.0.0.1:{port}"))
        self.log = directory / "haproxy.log"
        with self.log.open("wb") as log:
            env = {"MODEL": "org/base", "BALANCE_FACTOR": str(factor)}
            self.process = subprocess.Popen([str(HAPROXY), "-f", str(file)], env=env, stdout=log, stderr=log)
        self.wait_until(lambda: self.post({}) in "123")

    def wait_until(self, condition: Any) -> None:
        """Return once `condition()` is true."""
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError):
                if condition():
                    return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def send(self, path: str, body: bytes | None, headers: dict[str, str]) -> str:
        """The number of the replica that answers."""
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json", **headers})
        with urllib.request.urlopen(request, timeout=10) as response:
            return str(response.read().decode())

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> str:
        """POST `body`; returns the number of the replica that answers."""
        return self.send(path, json.dumps(body).encode(), {})

    def routes(self) -> dict[str, str]:
        """The replica of each adapter."""
        return {name: self.post({"model": name}) for name in ADAPTERS}

    def close(self) -> None:
        """End HAProxy."""
        self.process.kill()
        self.process.wait()


@contextmanager
def proxied(directory: Path, factor: int = 0) -> Iterator[Proxy]:
    """A proxy in front of three replicas."""
    replicas = [Replica(number) for number in (1, 2, 3)]
    proxy = Proxy(directory, replicas, factor)
    try:
        yield proxy
    finally:
        proxy.close()
        for replica in replicas:
            replica.close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy for the tests that leave it as it was."""
    with proxied(tmp_path_factory.mktemp("haproxy")) as running:
        yield running


def test_the_configuration_is_valid() -> None:
    env = {"MODEL": "org/name", "BALANCE_FACTOR": "0"}
    done = subprocess.run([str(HAPROXY), "-c", "-f", str(CONFIG)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_an_adapter_stays_on_one_replica_wherever_the_body_names_it(proxy: Proxy) -> None:
    routes = proxy.routes()
    assert set(routes.values()) == {"1", "2", "3"}
    for name, replica in list(routes.items())[:10]:
        late = {"messages": [{"role": "user", "content": 'the "model" is "x" ' * 500}], "tools": [{}], "model": name}
        assert proxy.post(late) == replica
        assert proxy.post({"model": name, "prompt": "x"}, "/v1/completions") == replica
        assert proxy.post({"inputs": "x", "parameters": {"adapter_id": name}}, "/generate") == replica


def test_a_body_of_the_largest_size_is_routed_by_its_last_field(proxy: Proxy) -> None:
    routes = proxy.routes()
    for name in ADAPTERS[:5]:
        body = {"messages": "", "model": name}
        body["messages"] = "x" * ((4 << 20) - len(json.dumps(body)))
        assert len(json.dumps(body)) == 4 << 20
        assert proxy.post(body) == routes[name]


@pytest.mark.parametrize("body", [{"model": "org/base"}, {"model": "base"}, {"model": ""}, {}])
def test_the_base_model_is_on_all_replicas(proxy: Proxy, body: dict[str, Any]) -> None:
    assert {proxy.post(body) for _ in range(9)} == {"1", "2", "3"}


def test_files_and_batches_of_a_caller_are_on_one_replica(proxy: Proxy) -> None:
    def stored(path: str, key: str) -> str:
        return proxy.send(path, b"x" * 100_000, {"authorization": f"Bearer {key}"})

    places = {key: stored("/v1/files", key) for key in map(str, range(20))}
    assert set(places.values()) == {"1", "2", "3"}
    assert all(stored("/v1/batches", key) == place for key, place in places.items())
    assert len({proxy.send("/v1/files", b"x", {}) for _ in range(6)}) == 1


def test_a_stored_response_is_found_on_its_replica(proxy: Proxy) -> None:
    for number in (3, 1, 1, 2, 3):
        assert proxy.send(f"/v1/responses/resp_{number}", None, {}) == str(number)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        proxy.send("/v1/responses/resp_9", None, {})


def test_the_metrics_of_one_replica_are_not_those_of_all(proxy: Proxy) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        proxy.send("/metrics", None, {})


def test_a_client_that_disconnects_before_the_answer_ends_its_request(tmp_path: Path) -> None:
    with proxied(tmp_path) as proxy:
        connection = HTTPConnection(proxy.url.removeprefix("http://"))
        connection.request("POST", "/v1/chat/completions?silent", json.dumps({"model": ADAPTERS[0]}))
        replica = proxy.replicas[int(proxy.post({"model": ADAPTERS[0]})) - 1]
        assert replica.next_event.acquire(timeout=5)
        connection.close()
        assert replica.client_left.wait(5)


def stream(proxy: Proxy) -> tuple[Replica, Any]:
    """A stream's replica, and the open response."""
    name = ADAPTERS[0]
    replica = proxy.replicas[int(proxy.post({"model": name})) - 1]
    body = json.dumps({"model": name}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{proxy.url}/v1/chat/completions?stream", body, headers)
    return replica, urllib.request.urlopen(request, timeout=10)


def test_events_are_not_buffered(proxy: Proxy) -> None:
    replica, response = stream(proxy)
    with response:
        for number in range(EVENTS):
            assert response.readline() == f"data: {number}\n".encode()
            assert response.readline() == b"\n"
            replica.next_event.release()
        assert response.read() == b""


def test_a_client_that_disconnects_ends_its_request(proxy: Proxy) -> None:
    replica, response = stream(proxy)
    assert response.readline() == b"data: 0\n"
    response.close()
    for _ in range(EVENTS):
        replica.next_event.release()
        if replica.client_left.wait(0.5):
            break
    assert replica.client_left.is_set()


def test_only_the_adapters_of_a_lost_replica_move(tmp_path: Path) -> None:
    with proxied(tmp_path) as proxy:
        before = proxy.routes()
        lost = proxy.replicas[1]
        lost.ready = False
        proxy.wait_until(lambda: "2" not in proxy.routes().values())
        during = proxy.routes()
        assert {name for name in ADAPTERS if during[name] != before[name]} == {n for n in ADAPTERS if before[n] == "2"}
        assert set(during.values()) == {"1", "3"}, "they are spread over the others"
        lost.ready = True
        proxy.wait_until(lambda: "2" in proxy.routes().values())
        assert proxy.routes() == before


def test_a_balance_factor_passes_requests_of_a_busy_replica_on(tmp_path: Path) -> None:
    with proxied(tmp_path, factor=150) as proxy:
        replica, response = stream(proxy)
        with response:
            assert response.readline() == b"data: 0\n"
            assert proxy.post({"model": ADAPTERS[0]}) != str(replica.number)
            for _ in range(EVENTS):
                replica.next_event.release()
            response.read()
