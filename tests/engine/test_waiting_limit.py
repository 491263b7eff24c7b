"""The limit on waiting sequences, and how much of it one API key can use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from support.scheduler_setup import SchedulerSize

from motet.core.errors import Overloaded
from motet.core.messages import AbortRequest, AddRequest
from motet.core.model_source import ModelInfo
from motet.core.sampling_params import SamplingParams
from motet.engine import engine_core as core
from motet.engine.distributed.transport import EngineSockets
from motet.engine.model_runner import ModelRunner
from motet.engine.staging import StagingBuffer


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[core.EngineCore]:
    """An engine core with a limit of eight, before its first step."""
    monkeypatch.setattr(core, "MAX_WAITING", 8)
    monkeypatch.setattr(core, "MAX_PER_OWNER", 4)
    sockets = EngineSockets(f"ipc://{tmp_path}/engine", f"ipc://{tmp_path}/ranks", 0)
    info = ModelInfo("tiny", "llama", str(tmp_path), 259, 256, "float32", 1, (2,))
    cpu = torch.device("cpu")
    staging = StagingBuffer(1 << 16, cpu)
    runner = cast(ModelRunner, SimpleNamespace(pool=None, directory=tmp_path, device=cpu, staging=staging))
    engine = core.EngineCore(runner, info, SchedulerSize().runner().scheduler, sockets, overlap=False)
    yield engine
    engine._grammars.close()
    sockets.close()


def add(engine: core.EngineCore, owner: str, count: int) -> int:
    """Add `count` sequences of `owner`; returns how many were accepted."""
    accepted = 0
    for number in range(count):
        group = f"{owner}:req_{number}"
        request = AddRequest(f"{group}-{number}", (1,), SamplingParams(max_tokens=1), group=group)
        refused = engine._refusal(request)
        if refused is None:
            engine._add(b"client", request)
            accepted += 1
        else:
            assert (refused.type, refused.status) == (Overloaded.type, Overloaded.status)
    engine.scheduler.check_integrity()
    return accepted


def test_one_key_leaves_half_of_the_limit_to_others(engine: core.EngineCore) -> None:
    assert add(engine, "greedy", 20) == 4
    assert add(engine, "modest", 3) == 3
    assert add(engine, "greedy", 1) == 0
    assert add(engine, "third", 5) == 1, "the limit is reached"
    engine._handle(b"client", AbortRequest("greedy:req_0-0"))
    engine._handle(b"client", AbortRequest("modest:req_0-0"))
    assert add(engine, "greedy", 5) == 1


def test_without_keys_all_callers_share_the_limit(engine: core.EngineCore) -> None:
    assert add(engine, "", 20) == 8
