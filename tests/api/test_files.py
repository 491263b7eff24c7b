"""Files that are kept whole or not at all: clients that leave, room while uploads arrive, ends, and what is swept."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from support.batches import drive
from support.scripted_server import Running

from motet.api import file_store as file_store_module
from motet.api import request_limits, uploads
from motet.api.database import Database
from motet.api.file_store import FileStore, new_file
from motet.api.paging import Page
from motet.api.uploads import Uploads
from motet.core.errors import NotFound, Overloaded, PayloadTooLarge
from motet.core.settings import Settings

ALL = Page(100, True, None)
HOUR = {"anchor": "created_at", "seconds": 3600}


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


def contents(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "files").iterdir())


def begun(length: int, sent: bytes = b"") -> bytes:
    """The beginning of an upload whose body has `length` bytes."""
    head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    return f"{head}content-length: {length}\r\n\r\n".encode() + sent


def test_a_file_is_listed_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileStore(Database(tmp_path))
        file, more = new_file("a", "batch", None), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"first"
            await more.wait()
            yield b"second"

        putting = asyncio.create_task(store.put("", file, slow()))
        while not (tmp_path / "files").is_dir() or not contents(tmp_path):
            await asyncio.sleep(0.01)
        assert await store.list("", None, ALL) == ([], False)
        for call in (store.get, store.open, store.delete):
            with pytest.raises(NotFound):
                await call("", file.id)
        more.set()
        kept = await putting
        assert (kept.bytes, (await store.list("", None, ALL))[0]) == (11, [kept])
        assert contents(tmp_path) == [file.id]

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_who_leaves_leaves_a_whole_file_or_nothing(tmp_path: Path, turns: int) -> None:
    async def main() -> None:
        database = Database(tmp_path)
        store = FileStore(database)
        await store.list("", None, ALL)
        putting = asyncio.create_task(store.put("", new_file("a", "batch", None), pieces(*[b"x" * 100_000] * 5)))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        putting.cancel()
        with suppress(asyncio.CancelledError):
            await putting
        await database.close()  # what was begun is done
        listed, _ = await FileStore(Database(tmp_path)).list("", None, ALL)
        there = [name for name in contents(tmp_path) if not name.endswith(".part")] if turns else []
        assert [file.id for file in listed] == there
        assert all(file.bytes == 500_000 for file in listed)

    asyncio.run(main())


def test_what_a_process_left_behind_is_swept_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        database = Database(tmp_path)
        store = FileStore(database)
        kept = await store.put("", new_file("a", "batch", None), pieces(b"x"))
        left = ("file-left", "file-left.part", "file-young.part")
        for name in left:
            (tmp_path / "files" / name).write_bytes(b"x")
        hour_ago = time.time() - 3600
        for name in (kept.id, *left[:2]):
            os.utime(tmp_path / "files" / name, (hour_ago, hour_ago))
        tending = asyncio.create_task(store.tend())
        async with asyncio.timeout(10):
            while len(contents(tmp_path)) > 2:
                await asyncio.sleep(0.01)
        tending.cancel()
        assert contents(tmp_path) == sorted([kept.id, "file-young.part"])
        await database.close()

    asyncio.run(main())


def test_a_file_is_gone_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        create: Any = client.files.create
        file = await create(file=("a", b"x"), purpose="batch", expires_after=HOUR)
        other = await create(file=("b", b"x"), purpose="batch")
        assert (file.expires_at, other.expires_at) == (file.created_at + 3600, None)
        assert (await client.files.retrieve(file.id)).expires_at == file.expires_at
        monkeypatch.setattr(file_store_module.time, "time", lambda now=time.time: now() + 3601)
        assert [entry.id async for entry in client.files.list()] == [other.id]
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file.id)
        assert contents(server.api.services.database.directory) == [other.id]

    drive(tmp_path, scenario)


def test_fields_of_an_upload_are_checked_and_unknown_ones_are_named(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        create: Any = client.files.create
        for expires, param in (
            ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds"),
            ({"anchor": "today", "seconds": 3600}, "expires_after.anchor"),
            ({"anchor": "created_at"}, "expires_after.seconds"),
        ):
            with pytest.raises(openai.BadRequestError) as wrong:
                await create(file=("a", b"x"), purpose="batch", expires_after=expires)
            assert wrong.value.param == param
        raw = await client.files.with_raw_response.create(
            file=("a", b"x"), purpose="batch", extra_body={"colour": "red", "expires_after": HOUR}
        )
        assert raw.headers["x-motet-ignored"] == "colour"
        async with httpx2.AsyncClient(base_url=server.url) as http:
            answer = await http.post("/v1/files", data={"purpose": "batch", "file": "text"}, files={"x": ("x", b"x")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
        assert "file name" in answer.json()["error"]["message"]

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (Settings(max_file="1MiB"), "payload_too_large", "--max-file)"),
        (Settings(max_files="1MiB"), "storage_full", "--max-files)"),
    ],
)
def test_an_upload_too_large_is_refused_before_it_is_read(
    tmp_path: Path, settings: Settings, code: str, said: str
) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begun(2 << 20))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 413")
        assert f'"code":"{code}"'.encode() in answer
        assert said.encode() in answer
        assert b'"param":"file"' in answer
        writer.close()

    drive(tmp_path, scenario, settings)


def test_a_file_just_over_the_limit_is_refused(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        with pytest.raises(openai.APIStatusError) as large:
            await client.files.create(file=("a", b"x" * 1001), purpose="batch")
        assert (large.value.status_code, large.value.param) == (413, "file")
        assert "1000 bytes (--max-file)" in large.value.message
        assert (await client.files.create(file=("a", b"x" * 1000), purpose="batch")).bytes == 1000

    drive(tmp_path, scenario, Settings(max_file="1KB"))


def test_a_form_with_too_much_beside_the_file_is_refused_as_that(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        async with httpx2.AsyncClient(base_url=server.url) as http:
            for data in ({"purpose": "x" * 70_000}, {str(n): "x" for n in range(9)}):
                answer = await http.post("/v1/files", data=data, files={"file": ("a", b"x")})
                assert answer.status_code == 413
                assert "form" in answer.json()["error"]["message"]

    drive(tmp_path, scenario)


def test_uploads_that_arrive_take_room_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS_OF_OWNER", 2)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        arriving = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]

        async def refusal() -> openai.APIStatusError:
            async with asyncio.timeout(10):
                while True:
                    try:
                        await client.files.create(file=("a", b"x" * 50_000), purpose="batch")
                    except openai.APIStatusError as error:
                        return error

        arriving[0][1].write(begun(900_000))
        full = await refusal()
        assert (full.status_code, full.code) == (413, "storage_full")
        arriving[1][1].write(begun(1000))
        await asyncio.sleep(0.3)
        busy = await refusal()
        assert (busy.status_code, busy.code, busy.response.headers["retry-after"]) == (429, "too_many_uploads", "1")
        for _, writer in arriving:
            writer.close()
        async with asyncio.timeout(10):
            while True:  # until both are noticed to have left
                with suppress(openai.APIStatusError):
                    await client.files.create(file=("b", b"x" * 100_000), purpose="batch")
                    break
                await asyncio.sleep(0.05)

    drive(tmp_path, scenario, Settings(max_files="1MB"))


def test_processes_count_uploads_together_and_forget_those_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 2)

    async def main() -> None:
        one, two = Database(tmp_path, 1_000_000), Database(tmp_path, 1_000_000)
        async with Uploads(one).reserved("alice", 800_000):
            await asyncio.sleep(1)  # longer than a lease, which is renewed
            with pytest.raises(PayloadTooLarge):
                await two.run(lambda connection: two.check_room(connection, 400_000, "file"))
            async with Uploads(two).reserved("alice", 10):
                with pytest.raises(Overloaded):
                    async with Uploads(two).reserved("bob", 10):
                        pass
        await one.run(
            lambda connection: connection.execute("INSERT INTO uploads VALUES ('dead', 'a', 800000, ?)", (time.time(),))
        )
        async with Uploads(two).reserved("bob", 400_000):
            pass
        await one.close()
        await two.close()

    asyncio.run(main())


def test_an_upload_must_make_some_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "BODY_SECONDS", 0.2)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begun(request_limits.UPLOAD_PACE, b"--b\r\n"))
        start = time.monotonic()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start > 1, "a second for each 64 KiB"
        writer.close()

    drive(tmp_path, scenario)


def test_a_file_deleted_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(tmp_path)
        store = FileStore(database)
        kept = await store.put("", new_file("a", "batch", None), pieces(b"x" * 100))
        file, content = await store.open("", kept.id)
        await store.delete("", kept.id)
        with content:
            assert len(content.read()) == file.bytes == 100
        await database.close()

    asyncio.run(main())
