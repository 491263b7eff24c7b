"""A real `motet serve` as a process, on a free port, for end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 180.0


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def health(self) -> tuple[int, dict[str, object]]:
        """GET /health: status and body."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Return once /health is 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
            with contextlib.suppress(OSError):
                if self.health()[0] == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the server is not ready after {seconds} s:\n{self.log.read_text()}")


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(*arguments: str, env: Mapping[str, str] | None = None, log: Path | None = None) -> Iterator[Server]:
    """Run `motet serve` with `arguments`; ends it with SIGINT and checks that it exits cleanly.

    Stored files are deleted afterwards, unless `arguments` have a --data-dir.
    """
    port = free_port()
    path = log or Path(f"/tmp/motet-test-{port}.log")
    command = [sys.executable, "-m", "motet", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="motet-data-") as data, path.open("wb") as output:
        command += ["--data-dir", data, *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        server = Server(f"http://127.0.0.1:{port}", process, path)
        try:
            server.wait_ready()
            yield server
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(15)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
