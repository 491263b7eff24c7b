"""Uploaded files are stored whole or not at all: disconnects, failures, and cleanup."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from support.batch_calls import drive
from support.scripted_server import Running

from motet.api.storage import files as file_store_module
from motet.api.storage.database import Database
from motet.api.storage.files import ExpiresAfter, FileStore, new_file
from motet.api.storage.paging import Page
from motet.api.storage.upload_reservations import UploadReservations
from motet.core.errors import NotFound

ALL = Page(100, True, None)
HOUR = {"anchor": "created_at", "seconds": 3600}


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


def contents(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "files").iterdir())


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


def test_what_a_process_left_behind_is_swept_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(tmp_path)
        store = FileStore(database)
        kept = await store.put("", new_file("a", "batch", None), pieces(b"x"))
        reservation = UploadReservations(database).reserved("", 10)
        arriving = f"{await reservation.__aenter__()}.0.part"
        left = ("file-left", "deadbeef.0.part", "file-young.part", arriving)
        for name in left:
            (tmp_path / "files" / name).write_bytes(b"x")
        hour_ago = time.time() - 3600
        for name in (kept.id, *left[:2], arriving):
            os.utime(tmp_path / "files" / name, (hour_ago, hour_ago))
        tending = asyncio.create_task(store.sweep_periodically())
        async with asyncio.timeout(10):
            while len(contents(tmp_path)) > 3:
                await asyncio.sleep(0.01)
        tending.cancel()
        assert contents(tmp_path) == sorted([kept.id, "file-young.part", arriving])
        await reservation.__aexit__(None, None, None)
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


def test_a_file_that_is_written_again_has_the_end_of_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = FileStore(Database(tmp_path))
        file = new_file("a", "batch_output", ExpiresAfter("created_at", 3600), "file-1")
        for content in (b"one", b"two"):  # with the same end, as twice within a second
            await store.put("", file, pieces(content))
        later = new_file("a", "batch_output", ExpiresAfter("created_at", 7200), "file-1")
        await store.put("", later, pieces(b"three"))
        now = time.time()
        monkeypatch.setattr(file_store_module.time, "time", lambda: now + 3601)
        assert (await store.get("", "file-1")).bytes == 5
        monkeypatch.setattr(file_store_module.time, "time", lambda: now + 7201)
        with pytest.raises(NotFound):
            await store.get("", "file-1")

    asyncio.run(main())
