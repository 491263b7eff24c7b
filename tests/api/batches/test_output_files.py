"""Output files of batches: written once, page by page, also after a crash or a late cancel."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI
from support.batch_calls import CHAT, ENDED, drive, finished, jsonl, line, lines_of, upload
from support.scripted_server import Running

from motet.api.batches import store as store_module
from motet.api.batches.execution import BatchExecution
from motet.api.batches.objects import BatchObject
from motet.api.batches.store import BatchStore, Claimed
from motet.api.storage.database import Database

DAY = {"anchor": "created_at", "seconds": 86400}


async def begun(client: AsyncOpenAI, content: bytes, **fields: Any) -> Any:
    file = await upload(client, content)
    return await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h", **fields)


def test_files_of_a_batch_expire_where_that_is_asked_for(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        content = jsonl(line("a"), line("bad", temperature=9))
        made = await begun(client, content, output_expires_after=DAY)
        plain = await begun(client, content)
        assert made.to_dict()["output_expires_after"] == DAY
        assert "output_expires_after" not in plain.to_dict()
        for id, seconds in ((made.id, 86400), (plain.id, None)):
            batch = await finished(client, id)
            for name in (batch.output_file_id, batch.error_file_id):
                file = await client.files.retrieve(name)
                assert file.expires_at == (None if seconds is None else file.created_at + seconds)
        with pytest.raises(openai.BadRequestError) as wrong:
            await begun(client, content, output_expires_after={**DAY, "seconds": 60})
        assert wrong.value.param == "output_expires_after.seconds"

    drive(tmp_path, scenario)


def test_results_are_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_BYTES", 1000)

    async def main() -> None:
        database = Database(tmp_path)
        store = BatchStore(database)
        batch = BatchObject(
            id="b",
            endpoint=CHAT,
            input_file_id="f",
            completion_window="24h",
            status="in_progress",
            created_at=0,
            expires_at=1,
        )
        await store.add("", batch)
        for number in range(1, 11):
            await store.add_result("b", number, number == 4, b"%d" % number + b"x" * 400)
        pages = [page async for page in store.results("b", failed=False)]
        assert [[int(result.rstrip(b"x")) for result in page] for page in pages] == [[1, 2, 3], [5, 6, 7], [8, 9, 10]]
        assert [len(page) async for page in store.results("b", failed=True)] == [1]
        await database.close()

    asyncio.run(main())


def test_output_of_many_pages_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_BYTES", 1000)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        batch = await finished(client, (await begun(client, jsonl(*(line(str(n)) for n in range(30))))).id)
        assert [entry["custom_id"] for entry in await lines_of(client, batch.output_file_id)] == [
            str(n) for n in range(30)
        ]

    drive(tmp_path, scenario)


def test_a_cancel_that_was_accepted_is_how_the_batch_ends(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        made = await begun(client, jsonl(line("a")))
        store = BatchStore(server.api.services.database)
        batch = await store.change("", made.id, lambda b: replace(b, status="in_progress"))
        await store.add_result(batch.id, 1, False, b"{}")
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        await BatchExecution(server.api.services, Claimed(batch, ""), asyncio.Semaphore()).finish("completed")
        ended = await client.batches.retrieve(batch.id)
        assert (ended.status, ended.completed_at, ended.expired_at) == ("cancelled", None, None)
        assert ended.cancelled_at
        assert await lines_of(client, ended.output_file_id) == [{}]

    drive(tmp_path, scenario, runs=False)


def test_an_end_that_is_tried_twice_leaves_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_SECONDS", 0.5)
    change, failures = BatchStore.change, iter((True,))

    async def sometimes(
        self: BatchStore, owner: str, id: str, how: Callable[[BatchObject], BatchObject]
    ) -> BatchObject:
        def changed(batch: BatchObject) -> BatchObject:
            after = how(batch)
            if after.status in ENDED and next(failures, False):
                raise sqlite3.OperationalError("database is locked")
            return after

        return await change(self, owner, id, changed)

    monkeypatch.setattr(BatchStore, "change", sometimes)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        batch = await finished(client, (await begun(client, jsonl(line("a")))).id)
        assert next(failures, None) is None
        outputs = [file.id async for file in client.files.list(purpose="batch_output")]
        assert outputs == [batch.output_file_id]
        rows = await server.api.services.database.run(
            lambda connection: connection.execute("SELECT COUNT(*) FROM batch_results").fetchone()
        )
        assert rows == (0,)

    drive(tmp_path, scenario)


def test_who_has_lost_a_batch_changes_nothing_of_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_BYTES", 1)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        made = await begun(client, jsonl(*(line(name) for name in "abc")))
        store = BatchStore(server.api.services.database)
        batch = await store.change("", made.id, lambda b: replace(b, status="in_progress"))
        for number in (1, 2, 3):
            await store.add_result(batch.id, number, False, b"%d" % number)
        late, other = (BatchExecution(server.api.services, Claimed(batch, ""), asyncio.Semaphore()) for _ in range(2))
        results, turns = BatchStore.results, iter((True,))

        async def overtaken(self: BatchStore, id: str, failed: bool) -> AsyncIterator[tuple[bytes, ...]]:
            async for page in results(self, id, failed):
                if next(turns, False):
                    await other.finish("completed")
                yield page

        monkeypatch.setattr(BatchStore, "results", overtaken)
        with pytest.raises(LookupError):
            await late.finish("completed")
        await store.add_result(batch.id, 4, False, b"4")
        ended = await client.batches.retrieve(batch.id)
        assert (ended.status, ended.request_counts.completed) == ("completed", 3)
        assert await lines_of(client, ended.output_file_id) == [1, 2, 3]
        assert await store.finished_lines(batch.id) == set()

    drive(tmp_path, scenario, runs=False)


def test_lines_may_not_go_into_the_background_nor_stream(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        url: Any = "/v1/responses"
        lines = (
            {"custom_id": name, "method": "POST", "url": url, "body": {"model": "", "input": "a", name: True}}
            for name in ("background", "stream")
        )
        file = await upload(client, jsonl(*lines))
        made = await client.batches.create(input_file_id=file, endpoint=url, completion_window="24h")
        batch = await finished(client, made.id)
        errors = [entry["response"]["body"]["error"] for entry in await lines_of(client, batch.error_file_id)]
        assert [error["param"] for error in errors] == ["body.background", "body.stream"]

    drive(tmp_path, scenario)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        batch = await finished(client, (await begun(client, b"\xef\xbb\xbf" + jsonl(line("a"), line("b")))).id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 2)
        failed = await finished(client, (await begun(client, b"\xef\xbb\xbf\n")).id)
        assert [error.code for error in failed.errors.data] == ["empty_file"]

    drive(tmp_path, scenario)
