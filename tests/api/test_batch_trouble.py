"""Batches when things go wrong: sources that are away, files that are gone, time that is over, runners that die."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI
from support.batches import CHAT, drive, finished, jsonl, line, lines_of, upload
from support.scripted_api import Shelf
from support.scripted_server import Running

from motet.api.batches import runner as runner_module
from motet.api.batches.runner import BatchRunner
from motet.api.batches.store import BatchStore
from motet.core.errors import Unavailable
from motet.core.settings import Settings


async def begun(client: AsyncOpenAI, *lines: dict[str, Any]) -> Any:
    return await client.batches.create(
        input_file_id=await upload(client, jsonl(*lines)), endpoint=CHAT, completion_window="24h"
    )


def away(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the source cannot say anything of `shelf:two`."""
    resolve = Shelf.resolve

    async def resolving(self: Shelf, ref: Any, token: str | None) -> Any:
        if ref.id == "two":
            raise Unavailable("the shelf is away", param="model")
        return await resolve(self, ref, token)

    monkeypatch.setattr(Shelf, "resolve", resolving)


async def expire(server: Running, id: str) -> None:
    await BatchStore(server.api.services.database).change("", id, lambda batch: replace(batch, expires_at=1))


def test_a_source_that_is_away_holds_up_its_own_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        away(server, monkeypatch)
        stuck = await begun(client, *(line(str(n), model="shelf:two") for n in range(6)))
        await asyncio.sleep(0.3)
        other = await finished(client, (await begun(client, line("a"), line("b"))).id)
        assert (other.status, other.request_counts.completed) == ("completed", 2)
        assert (await client.batches.retrieve(stuck.id)).status == "in_progress"

    drive(tmp_path, scenario, Settings(batch_concurrency=2))


def test_a_batch_that_waits_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "RETRY_SECONDS", (0.1,))

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        away(server, monkeypatch)
        services = server.api.services
        batch = await begun(client, line("a"), line("b", model="shelf:two"))
        await expire(server, batch.id)  # before it is begun
        runner = BatchRunner(services)
        runner.start()
        done = await finished(client, batch.id)
        assert (done.status, done.request_counts.failed) == ("expired", 2)
        assert done.expired_at
        errors = await lines_of(client, done.error_file_id)
        assert {entry["error"]["code"] for entry in errors} == {"batch_expired"}
        await runner.close()

    drive(tmp_path, scenario, runs=False)


def test_an_input_that_is_gone_fails_its_batch_and_keeps_what_was_done(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        early = await begun(client, line("a"))
        await client.files.delete(early.input_file_id)
        runner = BatchRunner(server.api.services)
        runner.start()
        failed = await finished(client, early.id)
        assert (failed.status, failed.errors.data[0].code) == ("failed", "file_not_found")
        server.api.engine.script = lambda request: "x" * (5 if len(request.prompt) < 60 else 400)
        server.api.engine.step_seconds = 0.01
        batch = await begun(client, line("a"), line("b", "y" * 60))
        while (await client.batches.retrieve(batch.id)).request_counts.completed < 1:
            await asyncio.sleep(0.02)
        await runner.close()
        await client.files.delete(batch.input_file_id)
        again = BatchRunner(server.api.services)
        again.start()
        failed = await finished(client, batch.id)
        assert (failed.status, failed.errors.data[0].code) == ("failed", "file_not_found")
        assert [entry["custom_id"] for entry in await lines_of(client, failed.output_file_id)] == ["a"]
        await again.close()

    drive(tmp_path, scenario, runs=False)


def test_a_batch_ends_as_it_was_about_to_when_its_runner_died(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        batch = await begun(client, line("a"))
        store = BatchStore(server.api.services.database)
        await store.change("", batch.id, lambda b: replace(b, status="finalizing", finalizing_at=5, expired_at=5))
        runner = BatchRunner(server.api.services)
        runner.start()
        assert (await finished(client, batch.id)).status == "expired"
        await runner.close()

    drive(tmp_path, scenario, runs=False)
