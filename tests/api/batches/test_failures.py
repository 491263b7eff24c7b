"""Batches that meet failures: unavailable sources, missing files, expiry, and runners that die."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import openai
import pytest
from loguru import logger
from msgspec.structs import replace
from openai import AsyncOpenAI
from support.batch_calls import CHAT, drive, finished, jsonl, line, lines_of, upload
from support.scripted_api import ShelfSource, scripted_api
from support.scripted_server import Running

from motet.api.batches import execution as work_module
from motet.api.batches import runner as runner_module
from motet.api.batches import store as store_module
from motet.api.batches.runner import BatchRunner
from motet.api.batches.store import BatchStore
from motet.api.storage.database import Database
from motet.core.errors import Unavailable
from motet.core.settings import Settings


async def begun(client: AsyncOpenAI, *lines: dict[str, Any]) -> Any:
    return await client.batches.create(
        input_file_id=await upload(client, jsonl(*lines)), endpoint=CHAT, completion_window="24h"
    )


def away(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the source cannot say anything of `shelf:two`."""
    resolve = ShelfSource.resolve

    async def resolving(self: ShelfSource, ref: Any, token: str | None) -> Any:
        if ref.id == "two":
            raise Unavailable("the shelf is unavailable", param="model")
        return await resolve(self, ref, token)

    monkeypatch.setattr(ShelfSource, "resolve", resolving)


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
    monkeypatch.setattr(work_module, "RETRY_SECONDS", (0.1,))

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


def test_batches_that_only_wait_give_their_places_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "RETRY_SECONDS", (0.05,))

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        away(server, monkeypatch)
        stuck = [await begun(client, line("a", model="shelf:two")) for _ in range(5)]
        await asyncio.sleep(0.3)
        other = await finished(client, (await begun(client, line("a"))).id)
        assert other.status == "completed"
        for batch in stuck:
            assert (await client.batches.retrieve(batch.id)).status == "in_progress"

    drive(tmp_path, scenario)


def test_no_line_is_lost_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_result = BatchStore.add_result
    failures = iter((True,))

    async def sometimes(self: BatchStore, *given: Any, **named: Any) -> None:
        if next(failures, False):
            raise sqlite3.OperationalError("database is locked")
        await add_result(self, *given, **named)

    monkeypatch.setattr(BatchStore, "add_result", sometimes)
    monkeypatch.setattr(store_module, "LEASE_SECONDS", 0.5)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        lines = jsonl(line("a"), line("deep", metadata="DEEP"))
        lines = lines.replace(b'"DEEP"', b'{"x": ' * 985 + b"{}" + b"}" * 985)
        file = await upload(client, lines)
        made = await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        batch = await finished(client, made.id)
        assert batch.status == "completed"
        assert batch.request_counts.total == batch.request_counts.completed + batch.request_counts.failed == 2

    drive(tmp_path, scenario)


def test_what_batches_leave_counts_as_what_is_kept(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        server.api.engine.script = lambda _: "\x01" * 160  # six bytes each in JSON
        lines = [line(str(n), n=30) for n in range(12)]  # some 30 KB each
        batch = await finished(client, (await begun(client, *lines)).id)
        assert batch.request_counts.failed > 4
        errors = await lines_of(client, batch.error_file_id)
        assert {entry["error"]["code"] for entry in errors} == {"storage_full"}
        with pytest.raises(openai.APIStatusError) as full:
            await client.files.create(file=("a", b"x" * 200_000), purpose="batch")
        assert (full.value.status_code, full.value.code) == (413, "storage_full")
        with pytest.raises(openai.APIStatusError) as full:
            await client.responses.create(model="", input="x" * 1500, metadata={"a": "b"}, instructions="y" * 300_000)
        assert full.value.status_code in (400, 413)

    drive(tmp_path, scenario, Settings(max_files="300KB"))


def test_uploads_at_once_do_not_go_over_the_limit_together(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        uploads = (client.files.create(file=(str(n), b"x" * 90_000), purpose="batch") for n in range(8))
        done = await asyncio.gather(*uploads, return_exceptions=True)
        kept = [file for file in done if not isinstance(file, BaseException)]
        assert 1 <= len(kept) <= 2
        directory = server.api.services.database.directory / "files"
        assert len(list(directory.iterdir())) == len(kept)

    drive(tmp_path, scenario, Settings(max_files="250KB"))


def test_metadata_has_limits(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        file = await upload(client, jsonl(line("a")))
        for metadata in ({"a": "x" * 513}, {"x" * 65: "a"}, {str(n): "a" for n in range(17)}):
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.batches.create(
                    input_file_id=file, endpoint=CHAT, completion_window="24h", metadata=metadata
                )
            assert (wrong.value.param or "").startswith("metadata")

    drive(tmp_path, scenario)


def test_a_lasting_disk_failure_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "POLL_SECONDS", 0.01)
    lines: list[str] = []

    async def main() -> None:
        async with scripted_api(tmp_path) as api:
            (tmp_path / "file").touch()
            api.services.database = Database(tmp_path / "file" / "data")
            runner = BatchRunner(api.services)
            runner.start()
            await asyncio.sleep(0.3)
            await runner.close()  # which cannot write there, either

    sink = logger.add(lines.append, format="{message}")
    try:
        asyncio.run(main())
    finally:
        logger.remove(sink)
    assert sum("batches cannot be read" in line for line in lines) == 1
