"""Whom rank 0 lets wait: as many as there are places for, and of one key no more than leaves room for others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support.scheduler_setup import Room

from motet.core.errors import Overloaded
from motet.core.messages import AbortRequest, AddRequest
from motet.core.models import ModelInfo
from motet.core.sampling_params import SamplingParams
from motet.engine import engine_core as core
from motet.engine.distributed.transport import EngineSockets
from motet.engine.model_runner import ModelRunner


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[core.EngineCore]:
    """Rank 0's decisions, with eight places, before its first step."""
    monkeypatch.setattr(core, "MAX_WAITING", 8)
    monkeypatch.setattr(core, "MAX_PER_OWNER", 4)
    sockets = EngineSockets(f"ipc://{tmp_path}/engine", f"ipc://{tmp_path}/ranks", 0)
    info = ModelInfo("tiny", "llama", str(tmp_path), 259, 256, "float32", 1, (2,))
    runner = cast(ModelRunner, SimpleNamespace(pool=None, directory=tmp_path))
    engine = core.EngineCore(runner, info, Room().rank().scheduler, sockets)
    yield engine
    engine._grammars.close()
    sockets.close()


def ask(engine: core.EngineCore, owner: str, count: int) -> int:
    """Let `owner` submit so many sequences; how many were taken."""
    taken = 0
    for number in range(count):
        group = f"{owner}:req_{number}"
        request = AddRequest(f"{group}-{number}", (1,), SamplingParams(max_tokens=1), group=group)
        refused = engine._refusal(request)
        if refused is None:
            engine._add(b"client", request)
            taken += 1
        else:
            assert (refused.type, refused.status) == (Overloaded.type, Overloaded.status)
    engine.scheduler.check_integrity()
    return taken


def test_a_key_that_asks_for_everything_leaves_half_to_others(engine: core.EngineCore) -> None:
    assert ask(engine, "greedy", 20) == 4
    assert ask(engine, "modest", 3) == 3
    assert ask(engine, "greedy", 1) == 0
    assert ask(engine, "third", 5) == 1, "there are no more places"
    engine._handle(b"client", AbortRequest("greedy:req_0-0"))
    engine._handle(b"client", AbortRequest("modest:req_0-0"))
    assert ask(engine, "greedy", 5) == 1


def test_where_there_are_no_keys_everybody_shares_all_places(engine: core.EngineCore) -> None:
    assert ask(engine, "", 20) == 8
