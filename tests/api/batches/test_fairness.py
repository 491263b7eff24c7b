"""Batches of several owners and runners: slots are shared in turn, and each line runs once."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from support.batch_calls import CHAT, ENDED, drive, jsonl, line
from support.scripted_server import Running

from motet.api.batches import runner as runner_module
from motet.api.batches.objects import BatchObject
from motet.api.batches.runner import BatchRunner
from motet.api.batches.store import BatchStore
from motet.api.services import Services
from motet.api.storage.database import Database
from motet.api.storage.files import FileStore, new_file
from motet.core.settings import Settings


async def begin(services: Services, owner: str, count: int) -> str:
    """The id of a new batch of `count` lines, whose texts are all different."""

    async def content() -> AsyncIterator[bytes]:
        yield jsonl(*(line(str(n), f"{owner} {uuid.uuid4().hex}") for n in range(count)))

    file = await FileStore(services.database).put(owner, new_file("in", "batch", None), content())
    now = int(time.time())
    batch = BatchObject(
        id=f"batch_{uuid.uuid4().hex}",
        endpoint=CHAT,
        input_file_id=file.id,
        completion_window="24h",
        status="validating",
        created_at=now,
        expires_at=now + 3600,
    )
    await BatchStore(services.database).add(owner, batch)
    return batch.id


async def ended(services: Services, owner: str, id: str) -> BatchObject:
    async with asyncio.timeout(30):
        while (batch := await BatchStore(services.database).get(owner, id)).status not in ENDED:
            await asyncio.sleep(0.05)
    return batch


def quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_BATCHES", 2)
    monkeypatch.setattr(runner_module, "TURN_SECONDS", 0.1)
    monkeypatch.setattr(runner_module, "POLL_SECONDS", 0.02)


def test_who_has_many_batches_makes_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_turns(monkeypatch)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        services, store = server.api.services, BatchStore(server.api.services.database)
        server.api.engine.step_seconds = 0.002
        alice = [await begin(services, "alice", 60) for _ in range(3)]
        while (await store.get("alice", alice[1])).status != "in_progress":
            await asyncio.sleep(0.01)
        bob, carol = await begin(services, "bob", 1), await begin(services, "carol", 1)
        assert (await ended(services, "bob", bob)).status == "completed"
        assert (await ended(services, "carol", carol)).status == "completed"
        statuses = [(await store.get("alice", id)).status for id in alice]
        assert not set(statuses) & set(ENDED)
        for id in alice:
            counts = (await ended(services, "alice", id)).request_counts
            assert (counts.completed, counts.failed) == (60, 0)
        assert len(server.api.engine.submits) == 182, "a batch that leaves its place repeats nothing"

    drive(tmp_path, scenario, Settings(batch_concurrency=2))


def test_owners_of_one_batch_each_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_turns(monkeypatch)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        services, store = server.api.services, BatchStore(server.api.services.database)
        server.api.engine.step_seconds = 0.002
        batches = {owner: await begin(services, owner, 400) for owner in ("alice", "bob", "carol")}
        async with asyncio.timeout(20):
            while True:
                counts = [(await store.get(owner, id)).request_counts for owner, id in batches.items()]
                if all(count.completed > 5 for count in counts):
                    break
                await asyncio.sleep(0.02)
        assert all(count.completed < 400 for count in counts)

    drive(tmp_path, scenario, Settings(batch_concurrency=2))


def test_two_processes_share_the_batches(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        services = server.api.services
        other = dataclasses.replace(services, database=Database(services.database.directory))
        batches = [(owner, await begin(services, owner, 10)) for owner in ("alice", "bob") for _ in range(5)]
        runners = [BatchRunner(services), BatchRunner(other)]
        for runner in runners:
            runner.start()
        for owner, id in batches:
            assert (await ended(services, owner, id)).request_counts.completed == 10
        assert len(server.api.engine.submits) == 100
        for runner in runners:
            await runner.close()
        await other.database.close()

    drive(tmp_path, scenario, Settings(batch_concurrency=4), runs=False)
