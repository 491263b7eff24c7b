"""Files and batches: uploads, validation, running behind live traffic, cancelling, and surviving a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from support.batch_calls import CHAT, drive, finished, jsonl, line, lines_of, upload
from support.scripted_server import Running

from motet.api.batches.execution import PRIORITY
from motet.api.batches.runner import BatchRunner
from motet.api.batches.store import BatchStore
from motet.core.errors import Unavailable
from motet.core.messages import AddRequest
from motet.core.settings import Settings


def test_files_are_kept_listed_and_deleted(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        content = b"x" * 700_000
        file = await client.files.create(file=("a/../b.txt", content), purpose="user_data")
        assert (file.bytes, file.purpose, file.status) == (len(content), "user_data", "processed")
        assert (await client.files.content(file.id)).content == content
        second = await client.files.create(file=("c", b"{}"), purpose="batch")
        assert [entry.id async for entry in client.files.list()] == [second.id, file.id]
        assert [entry.id async for entry in client.files.list(purpose="batch")] == [second.id]
        assert [entry.id async for entry in client.files.list(limit=1, order="asc")] == [file.id, second.id]
        kept = list((server.api.services.database.directory / "files").iterdir())
        assert {path.name for path in kept} == {file.id, second.id}
        assert (await client.files.delete(file.id)).deleted
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file.id)

    drive(tmp_path, scenario)


def test_uploads_that_are_refused_leave_nothing(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=("a", b"x" * 200_000), purpose="batch")
        assert caught.value.status_code == 413
        await client.files.create(file=("a", b"x" * 60_000), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=("a", b"x" * 60_000), purpose="batch")
        assert (caught.value.status_code, caught.value.param) == (413, "file")
        purpose: Any = "holiday"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.files.create(file=("a", b"x"), purpose=purpose)
        assert wrong.value.param == "purpose"
        assert len(list((server.api.services.database.directory / "files").iterdir())) == 1

    drive(tmp_path, scenario, Settings(max_file="100KB", max_files="120KB"))


def test_a_batch_runs_and_each_line_is_answered_once(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        lines = [line(f"line-{n}") for n in range(40)] + [line("bad", temperature=9), line("gone", model="no such")]
        batch = await client.batches.create(
            input_file_id=await upload(client, jsonl(*lines)),
            endpoint=CHAT,
            completion_window="24h",
            metadata={"a": "b"},
        )
        assert batch.status == "validating"
        batch = await finished(client, batch.id)
        assert batch.status == "completed"
        assert batch.metadata == {"a": "b"}
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (42, 40, 2)
        output = await lines_of(client, batch.output_file_id)
        assert [entry["custom_id"] for entry in output] == [f"line-{n}" for n in range(40)]
        assert all(entry["response"]["status_code"] == 200 and entry["error"] is None for entry in output)
        assert output[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello!"
        errors = await lines_of(client, batch.error_file_id)
        assert [(e["custom_id"], e["response"]["status_code"]) for e in errors] == [("bad", 400), ("gone", 404)]
        assert errors[0]["response"]["body"]["error"]["param"] == "temperature"
        assert {submit.priority for submit in server.api.engine.submits} == {PRIORITY}
        assert [entry.id async for entry in client.batches.list()] == [batch.id]

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": 3}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/responses", {"input": "a", "store": False}),
    ],
)
def test_every_endpoint(tmp_path: Path, url: Any, body: dict[str, Any]) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        entry = {"custom_id": "x", "method": "POST", "url": url, "body": {"model": "", **body}}
        file = await upload(client, jsonl(entry))
        batch = await client.batches.create(input_file_id=file, endpoint=url, completion_window="24h")
        batch = await finished(client, batch.id)
        [output] = await lines_of(client, batch.output_file_id)
        assert output["response"]["status_code"] == 200

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"{", "invalid_json_line"),
        (jsonl({**line("a"), "method": "GET"}), "invalid_line"),
        (jsonl(line("a"), line("a")), "duplicate_custom_id"),
        (jsonl(line("a", url="/v1/embeddings")), "mismatched_endpoint"),
        (jsonl(line("a", model=None)), "missing_model"),
    ],
)
def test_a_file_that_is_wrong_fails_its_batch(tmp_path: Path, content: bytes, code: str) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        file = await upload(client, content or b"\n")
        batch = await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        batch = await finished(client, batch.id)
        assert batch.status == "failed"
        assert batch.errors.data[0].code == code
        assert server.api.engine.submits == []

    drive(tmp_path, scenario)


def test_what_cannot_be_a_batch_is_refused(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        create: Any = client.batches.create
        file = await upload(client, jsonl(line("a")))
        other = (await client.files.create(file=("a", b"{}"), purpose="user_data")).id
        for fields, status, param in (
            ({"input_file_id": "file-nope"}, 404, "input_file_id"),
            ({"input_file_id": other}, 400, "input_file_id"),
            ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
            ({"completion_window": "1h"}, 400, "completion_window"),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                await create(**{"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **fields})
            assert (caught.value.status_code, caught.value.param) == (status, param)
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_nope")

    drive(tmp_path, scenario)


def test_a_batch_that_is_cancelled_keeps_what_was_done(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        server.api.engine.script = lambda request: "Hello!" if len(server.api.engine.submits) < 4 else "x" * 500
        server.api.engine.step_seconds = 0.01
        file = await upload(client, jsonl(*(line(f"{n}") for n in range(20))))
        batch = await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        async with asyncio.timeout(10):
            while (await client.batches.retrieve(batch.id)).request_counts.completed < 2:  # type: ignore[union-attr]
                await asyncio.sleep(0.05)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await finished(client, batch.id)
        assert batch.status == "cancelled"
        assert 2 <= len(await lines_of(client, batch.output_file_id)) < 20
        assert server.api.engine.running == set()
        assert (await client.batches.cancel(batch.id)).status == "cancelled"

    drive(tmp_path, scenario, Settings(batch_concurrency=3))


def test_an_engine_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        engine = server.api.engine
        engine.fail_after, engine.failure = 0, Unavailable("a rank died")
        file = await upload(client, jsonl(line("a")))
        batch = await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        async with asyncio.timeout(10):
            while not engine.submits:
                await asyncio.sleep(0.02)
        engine.fail_after = None
        batch = await finished(client, batch.id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 0)

    drive(tmp_path, scenario)


@pytest.mark.parametrize("after", [1, 7, 19])
def test_a_restart_loses_no_line_and_repeats_none(tmp_path: Path, after: int) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        services, engine = server.api.services, server.api.engine
        said: list[AddRequest] = engine.submits
        engine.step_seconds = 0.002
        file = await upload(client, jsonl(*(line(f"{n}", content=f"{n}") for n in range(30))))
        batch = await client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        first = BatchRunner(services)
        first.start()
        async with asyncio.timeout(20):
            while len(said) < after + 3:
                await asyncio.sleep(0.001)
        await first.close()  # in the middle of some lines
        done = await BatchStore(services.database).finished_lines(batch.id)
        assert len(done) < 30
        second = BatchRunner(services)
        second.start()
        batch = await finished(client, batch.id)
        await second.close()
        output = await lines_of(client, batch.output_file_id)
        assert [entry["custom_id"] for entry in output] == [f"{n}" for n in range(30)]
        assert batch.error_file_id is None
        assert len(said) <= 30 + 3, "only what was running at the end was run again"

    drive(tmp_path, scenario, Settings(batch_concurrency=3), runs=False)
