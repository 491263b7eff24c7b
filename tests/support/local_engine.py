"""An engine in the test's own process: messages go in and come out as objects, without sockets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support.random_model import RandomCheckpoint

from motet.core.messages import AbortRequest, AddRequest, FromEngine, PreparedAdapter, RegisterAdapter, ToEngine
from motet.core.model_source import ModelInfo
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine import model_runner
from motet.engine.decode_graphs import cuda_recorder
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.engine_config import EngineConfig
from motet.engine.engine_core import EngineCore
from motet.engine.model_runner import ModelRunner
from motet.engine.schedule.adapter_slots import AdapterSlots
from motet.engine.schedule.batch import SchedulerConfig
from motet.engine.schedule.kv_block_manager import BlockManager
from motet.engine.schedule.plan import InstallResult, ToRank
from motet.engine.schedule.scheduler import Scheduler


class InProcessSockets:
    """EngineSockets' methods, with one client."""

    def __init__(self) -> None:
        self.inbox: deque[ToEngine] = deque()
        self.sent: list[FromEngine] = []

    def from_clients(self) -> Iterator[tuple[bytes, ToEngine]]:
        """The client's messages."""
        while self.inbox:
            yield b"client", self.inbox.popleft()

    def from_ranks(self) -> Iterator[InstallResult]:
        """There are no other ranks."""
        yield from ()

    def send(self, client: bytes, message: FromEngine) -> bool:
        """Store a message."""
        self.sent.append(message)
        return True

    def broadcast(self, message: ToRank) -> None:
        """There are no other ranks."""

    def wait(self, milliseconds: int) -> None:
        """Nothing arrives while the caller waits."""
        time.sleep(1e-3)


def random_runner(config: EngineConfig, device: torch.device) -> ModelRunner:
    """A runner of the config's model with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_runner, "Checkpoint", RandomCheckpoint)
        return ModelRunner(config, ShardGroup(), device)


def engine_core(runner: ModelRunner, config: EngineConfig, sockets: InProcessSockets, overlap: bool) -> EngineCore:
    """Rank 0's loop around a runner, as the worker makes it."""
    capacity = runner.capacity
    scheduler = Scheduler(
        BlockManager(capacity.blocks, capacity.block_size),
        AdapterSlots(config.adapter_slots, dict.fromkeys(runner.modules, runner.pages)),
        SchedulerConfig(runner.max_batch_tokens, config.max_sequences, capacity.max_context),
        "local",
    )
    model = ModelInfo(
        name="random",
        architecture=runner.config.architecture,
        directory=config.directory,
        vocab_size=runner.config.vocab_size,
        max_context=capacity.max_context,
        dtype=str(runner.dtype),
        shards=1,
        eos_token_ids=(),
        device=runner.device.type,
        hidden_size=runner.config.hidden_size,
    )
    return EngineCore(runner, model, scheduler, sockets, overlap)


class LocalEngine:
    """An engine with random weights for the config.json in a directory."""

    def __init__(self, directory: Path, settings: Settings, device: torch.device) -> None:
        config = EngineConfig.from_settings(settings, directory)
        self.runner = random_runner(config, device)
        self.runner.warm_up()
        if self.runner.graph_sizes:
            self.runner.record_graphs(self.runner.graph_sizes, cuda_recorder(device), lambda done, total: None)
        self.sockets = InProcessSockets()
        self.core = engine_core(self.runner, config, self.sockets, overlap=device.type == "cuda")

    def register(self, adapter: PreparedAdapter) -> None:
        """Register a prepared adapter."""
        self.sockets.inbox.append(RegisterAdapter(adapter))

    def add(self, id: str, prompt: Sequence[int], params: SamplingParams, adapter: str | None = None) -> None:
        """Queue a request."""
        self.sockets.inbox.append(AddRequest(id, tuple(prompt), params, adapter))

    def step(self) -> None:
        """One turn of rank 0's loop."""
        self.core.run_once()

    def run_until_decoding(self, count: int) -> None:
        """Run until `count` sequences have been sampled from, and nothing is left of their prompts."""
        limit = time.monotonic() + 120
        while True:
            self.step()
            running = self.core.scheduler.running
            if len(running) == count and all(s.num_generated > 2 for s in running):
                return
            assert time.monotonic() < limit, "the sequences do not run"

    def end_all(self) -> None:
        """End all sequences."""
        for sequence in self.core.scheduler.sequences():
            self.sockets.inbox.append(AbortRequest(sequence.id))
        for _ in range(3):
            self.step()
        self.sockets.sent.clear()
