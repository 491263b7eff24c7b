"""Starts, watches and ends the engine's processes (ranks and loader). Imports no torch.

The supervisor and the library both keep an engine alive with it: `start`, then `tick` some twenty times a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq
from loguru import logger

from motet.core.errors import ALREADY_SAID, StartupError
from motet.core.messages import EngineState
from motet.core.paths import cache_directory
from motet.engine.adapters.loader import LoaderSpec
from motet.engine.rank import RankSpec
from motet.engine.spec import EngineSpec

STOP_SECONDS = 0.8
"""How long a process may take to leave after SIGTERM before it is killed."""

HANG_SECONDS = 60.0
"""A step takes seconds at the most; a loop that has not turned for this long never will."""

HUNG = -1

LOADER_PAUSE = 5.0
"""Seconds between two starts of the loader, so that one which dies at once does not spin."""

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MOTET_HUB_TOKEN")
"""Variables that only plugins need, and the ranks and the loader, which read foreign files, do not get."""

YOUNG_SECONDS = 60.0
"""An engine that ends before this age has failed to start, rather than died in service."""


@dataclass
class EngineProcesses:
    """One engine: `shards` ranks, started and ended together, and the loader beside them.

    All of it is told by addresses under `run_directory`, so that engines on one host never meet.
    """

    spec: EngineSpec
    shards: int
    name: str
    run_directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="motet-")))

    def __post_init__(self) -> None:
        self.engine_address = f"ipc://{self.run_directory}/engine"
        self.loader_address = f"ipc://{self.run_directory}/loader"
        self.state_address = f"ipc://{self.run_directory}/state"
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._loader: subprocess.Popen[bytes] | None = None
        self._started = self._loader_started = 0.0
        self._failures = 0
        self._heartbeat = self.run_directory / "heartbeat"
        self._restart_at: float | None = None
        self._context = zmq.Context()
        self._state = self._context.socket(zmq.PUB)
        self._state.bind(self.state_address)

    def start(self) -> None:
        """Start the ranks and the loader; does not wait for them."""
        self._start_ranks()
        self._start_loader()

    def tick(self) -> None:
        """Look after the processes: publish the engine's death, end its other ranks, start it again.

        Raises StartupError if a process says that it cannot start as configured (exit code 2).
        """
        codes = [p.returncode for p in self._ranks if p.poll() is not None]
        if codes:
            self._lost(codes)
        elif self._hangs():
            logger.error("the engine has not moved for {:g} s", HANG_SECONDS)
            self._lost([HUNG])
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self._restart_at = None
            self._start_ranks()
        if self._loader is not None and self._loader.poll() is not None:
            _check_exit(self._loader.returncode)
            if time.monotonic() - self._loader_started > LOADER_PAUSE:
                logger.error("the adapter loader ended with {}; starting it again", self._loader.returncode)
                self._start_loader()

    def stop(self) -> None:
        """End everything, and remove the run directory."""
        stop_all([*self._ranks, *([self._loader] if self._loader else [])])
        self._context.destroy(linger=100)
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def process_ids(self) -> list[int]:
        """The ranks' process ids, rank 0 first."""
        return [process.pid for process in self._ranks]

    def _start_ranks(self) -> None:
        epoch = uuid.uuid4().hex[:12]
        self._started = time.monotonic()
        self._publish(EngineState("starting", "the engine is starting"))
        self._ranks = [self._start_rank(rank, epoch) for rank in range(self.shards)]

    def _start_rank(self, rank: int, epoch: str) -> subprocess.Popen[bytes]:
        return start_child("motet.engine.rank", self._rank_spec(rank, epoch), keep_secrets=False)

    def _start_loader(self) -> None:
        spec = LoaderSpec(self.spec, self.shards, self.loader_address, str(cache_directory()))
        self._loader_started = time.monotonic()
        self._loader = start_child("motet.engine.adapters.loader", spec, keep_secrets=False)

    def _hangs(self) -> bool:
        """Whether rank 0's loop has stopped turning; it begins to count once the engine is up."""
        try:
            return time.time() - self._heartbeat.stat().st_mtime > HANG_SECONDS
        except FileNotFoundError:
            return False

    def _lost(self, codes: list[int]) -> None:
        """A rank has ended, or all hang: the others are of no use without it."""
        _check_exit(2 if 2 in codes else codes[0])
        self._publish(EngineState("down", "the engine stopped and is being restarted"))
        logger.error("an engine rank ended with {}; restarting the engine", codes[0])
        self._heartbeat.unlink(missing_ok=True)
        for process in self._ranks:
            process.kill()
        stop_all(self._ranks)
        self._ranks = []
        # An engine that dies young is started again more and more slowly.
        self._failures = self._failures + 1 if time.monotonic() - self._started < YOUNG_SECONDS else 0
        self._restart_at = time.monotonic() + min(30.0, 0.5 * (2 ** min(self._failures, 6) - 1))

    def _publish(self, state: EngineState) -> None:
        self._state.send(msgspec.msgpack.encode(state))

    def _rank_spec(self, rank: int, epoch: str) -> RankSpec:
        return RankSpec(
            rank=rank,
            size=self.shards,
            epoch=epoch,
            name=self.name,
            engine=self.spec,
            engine_address=self.engine_address,
            ranks_address=f"ipc://{self.run_directory}/ranks-{epoch}",
            store=str(self.run_directory / f"store-{epoch}"),
            kernel_cache=str(cache_directory() / "kernels"),
            heartbeat=str(self._heartbeat),
        )


def _check_exit(code: int) -> None:
    if code == 2:
        raise StartupError("the engine could not start; its message is above", code=ALREADY_SAID)


def start_child(
    module: str,
    spec: msgspec.Struct,
    descriptors: tuple[int, ...] = (),
    *,
    keep_secrets: bool = True,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module SPEC`, holding its stdin open as its lifeline; it inherits `descriptors`.

    It has this process's environment, with `variables` and perhaps without SECRETS.
    """
    command = [sys.executable, "-m", module, msgspec.json.encode(spec).decode()]
    env = dict(os.environ) if keep_secrets else public_environment()
    env |= variables or {}
    return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=descriptors, env=env)


def public_environment() -> dict[str, str]:
    """This process's environment without SECRETS."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def stop_all(processes: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, then SIGKILL to those that stay longer than STOP_SECONDS; reaps all."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
