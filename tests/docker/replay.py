"""Replays a Dockerfile without Docker, in a Debian of its own, and asks the server that it starts for one answer.

    python tests/docker/replay.py /tmp/image [NAME=VALUE…]

It needs root and debootstrap. The base image `python:3.11-slim` is replaced by Debian 12 with its own Python 3.11.
Instructions run in order: COPY copies, RUN runs in a chroot as the current user with the variables of ENV and ARG
(NAME=VALUE overrides an ARG), and at the end ENTRYPOINT and CMD run as USER. HEALTHCHECK runs until it succeeds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
MOUNTS = ("/proc", "/dev", "/dev/shm")
# What the base image has beyond a minimal Debian. Its pip may install into the system's Python.
BASE = "python3 python3-pip ca-certificates"
START_SECONDS = 600.0


class Replay:
    """One image: its files in `place`, and what later instructions depend on."""

    def __init__(self, place: Path, overrides: dict[str, str]) -> None:
        self.place, self.overrides = place, overrides
        self.variables = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
        self.directory, self.user = "/", "0:0"
        self.final: dict[str, list[str]] = {}

    def prepare(self) -> None:
        """Make the base image."""
        if not (self.place / "usr").exists():
            subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(self.place)], check=True)
        for mount in MOUNTS:
            subprocess.run(["mount", "--bind", mount, f"{self.place}{mount}"], check=True)
        shutil.copy("/etc/resolv.conf", self.place / "etc" / "resolv.conf")
        self.run(f"apt-get update && apt-get install --yes --no-install-recommends {BASE}")
        self.run("rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -sf python3 /usr/bin/python")

    def command(self, words: list[str]) -> list[str]:
        """`words`, to be run in the image as its user."""
        inside = ["env", "--chdir", self.directory, "-i", *(f"{k}={v}" for k, v in self.variables.items()), *words]
        return ["chroot", f"--userspec={self.user}", str(self.place), *inside]

    def run(self, script: str) -> None:
        """Run a shell script; raises CalledProcessError if it fails."""
        print(f"RUN {script}", flush=True)
        started = time.monotonic()
        subprocess.run(self.command(["sh", "-c", script]), check=True)
        print(f"    {time.monotonic() - started:.0f} s", flush=True)

    def apply(self, word: str, rest: str) -> None:
        """Carry out one instruction."""
        match word:
            case "RUN":
                self.run(rest)
            case "ENV":
                self.variables |= dict(pair.split("=", 1) for pair in rest.split())
            case "ARG":
                name, _, default = rest.partition("=")
                self.variables[name] = self.overrides.get(name, default)
            case "WORKDIR":
                self.directory = rest
                (self.place / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self.copy(rest.split())
            case "USER":
                self.user = rest
            case "ENTRYPOINT" | "CMD":
                self.final[word] = json.loads(rest)
            case "HEALTHCHECK":
                self.final[word] = json.loads(rest[rest.index("[") :])
            case "FROM" | "VOLUME" | "EXPOSE":
                pass
            case _:
                raise ValueError(f"{word} cannot be replayed")

    def copy(self, names: list[str]) -> None:
        """Copy files, or the content of one directory, from the repository."""
        *sources, name = names
        target = self.place / self.directory.lstrip("/") / name
        for source in (ROOT / source for source in sources):
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into = target / source.name if len(sources) > 1 or name.endswith("/") else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into)

    def serve(self) -> None:
        """Start the server, wait until its health check succeeds, and print one answer and its exit code."""
        self.variables["HOME"] = "/home/motet"
        server = subprocess.Popen(self.command([*self.final["ENTRYPOINT"], *self.final["CMD"]]))
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(self.command(self.final["HEALTHCHECK"]), stderr=subprocess.DEVNULL).returncode:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server is not healthy")
            time.sleep(1)
        body = {"model": "pirate", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
        url = f"http://127.0.0.1:{self.variables['MOTET_PORT']}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request) as response:
            print("answer:", json.load(response)["choices"][0]["message"]["content"], flush=True)
        server.send_signal(signal.SIGTERM)
        print("exit code:", server.wait(30), flush=True)

    def close(self) -> None:
        """Unmount what `prepare` mounted."""
        for mount in reversed(MOUNTS):
            with suppress(subprocess.CalledProcessError):
                subprocess.run(["umount", f"{self.place}{mount}"], check=True)


def main() -> None:
    """Replay docker/Dockerfile in the directory that the first argument names."""
    replay = Replay(Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:]))
    text = re.sub(r"^#.*\n", "", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)
    try:
        replay.prepare()
        for line in filter(None, text.replace("\\\n", " ").splitlines()):
            word, _, rest = line.partition(" ")
            replay.apply(word, rest.strip())
        replay.serve()
    finally:
        replay.close()


if __name__ == "__main__":
    os.umask(0o022)
    main()
