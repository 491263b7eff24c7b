"""Runs `motet serve`: starts it, measures its memory and CPU time, and stops it by Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

START_SECONDS = 600.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Served:
    """A server that answers at `url`."""

    url: str
    process: subprocess.Popen[bytes]

    def memory(self) -> dict[str, float]:
        """Resident MiB of each process: `serve` itself, and the others by their modules' last names."""
        sizes: dict[str, float] = {}
        for name, process in self._processes():
            sizes[name] = sizes.get(name, 0.0) + process.memory_info().rss / 2**20
        return sizes

    def seconds(self, process_name: str) -> float:
        """The CPU seconds that the processes with this name have used so far."""
        times = [process.cpu_times() for name, process in self._processes() if name == process_name]
        return sum(used.user + used.system for used in times)

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        top = psutil.Process(self.process.pid)
        yield "serve", top
        for child in top.children(recursive=True):
            command = child.cmdline()
            yield command[command.index("-m") + 1].removeprefix("motet.") if "-m" in command else child.name(), child


@contextmanager
def served(adapter_root: Path, log: Path) -> Iterator[Served]:
    """Serve the default model and the adapters under `adapter_root` on a free port; its output goes to `log`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "motet", "serve", "--port", str(port), "--adapter-root", str(adapter_root)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            server = Served(f"http://127.0.0.1:{port}", process)
            _wait(server, log)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Served, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urlopen(f"{server.url}/health", timeout=5) as answer:
                if json.load(answer)["status"] == "ok":
                    return
        except (URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')}")
