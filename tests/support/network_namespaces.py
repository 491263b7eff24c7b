"""Two network namespaces as two hosts that a cable connects, each with a cache that the other one does not see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

CLONE_NEWNET = 0x40000000


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def available() -> bool:
    """Whether this process may make network namespaces."""
    name = f"motet-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@dataclass(frozen=True)
class Host:
    """A namespace: its name, the address of its end of the cable, and its own cache directory."""

    name: str
    address: str
    cache: Path
    hidden: tuple[Path, ...]

    def start(self, command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Run `command` on this host, with the other host's directories hidden."""
        hide = [f"mount -t tmpfs none {shlex.quote(str(path))}" for path in self.hidden]
        # `ip netns exec` makes a mount namespace, in which the mounts stay.
        script = " && ".join([*hide, f"exec {shlex.join(command)}"])
        env = os.environ | {"MOTET_CACHE": str(self.cache)} | variables
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "sh", "-c", script], stdout=output, stderr=subprocess.STDOUT, env=env
            )

    def cable(self, state: str) -> None:
        """Set this end of the cable `up` or `down`."""
        _ip("-n", self.name, "link", "set", "cable", state)

    def call(self, work: Callable[[], Result]) -> Result:
        """Run `work` in a thread that uses this host's network."""
        results: list[Any] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.name}", "rb") as namespace:
                assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            results.append(work())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert results, "the call failed"
        return results[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[Host, Host]]:
    """Two connected hosts; their namespaces are removed at the end."""
    names = [f"motet-{letter}-{os.getpid()}" for letter in "ab"]
    caches = [directory / f"cache-{letter}" for letter in "ab"]
    private = directory / "first-host"
    for path in (*caches, private):
        path.mkdir()
    hosts = (
        Host(names[0], "10.77.0.1", caches[0], (caches[1],)),
        Host(names[1], "10.77.0.2", caches[1], (caches[0], private)),
    )
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        first, second = names
        _ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "cable")
            host.cable("up")
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
