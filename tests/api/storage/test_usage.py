"""One API key's share of `--max-files`: stored objects leave room for other keys, and deleted ones do not count."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from support.api_caller import Caller, drive
from support.responses_calls import RESPONSES

from motet.api.batches.objects import BatchObject
from motet.api.batches.store import BatchStore
from motet.api.http.api_keys import key_line
from motet.api.responses import store as store_module
from motet.api.responses.objects import ResponseObject
from motet.api.responses.store import RETENTION_SECONDS, ResponseStore, StoredResponse
from motet.api.storage.database import Database
from motet.api.storage.files import FileStore, new_file
from motet.api.storage.upload_reservations import UploadReservations
from motet.api.storage.usage import used_by
from motet.core.errors import PayloadTooLarge
from motet.core.settings import Settings

LIMIT = 2_000_000


async def content(size: int) -> AsyncIterator[bytes]:
    yield b"x" * size


def with_database(path: Path, scenario: Callable[[Database], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        database = Database(path, LIMIT)
        try:
            await scenario(database)
        finally:
            await database.close()

    asyncio.run(main())


async def has(database: Database, owner: str) -> int:
    return await database.run(lambda connection: used_by(connection, owner))


def test_a_key_leaves_half_of_the_room_to_others(tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        uploads, files = UploadReservations(database), FileStore(database)
        kept = new_file("a", "batch", None)
        await files.put("alice", kept, content(900_000))
        with pytest.raises(
            PayloadTooLarge, match=r"half of the room that the others leave of --max-files.*yours uses 900000"
        ) as full:
            async with uploads.reserved("alice", 200_000):
                pass
        assert (full.value.code, full.value.param) == ("storage_full", "file")
        async with uploads.reserved("bob", 400_000):
            with pytest.raises(PayloadTooLarge, match="half of the room that the others leave"):
                async with uploads.reserved("bob", 200_000):  # what arrives counts
                    pass
        async with uploads.reserved("", 1_000_000):  # without keys, all callers are one
            pass
        await files.delete("alice", kept.id)
        async with uploads.reserved("alice", 200_000):
            pass

    with_database(tmp_path, scenario)


def test_everything_that_an_owner_stores_counts_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(database: Database) -> None:
        files, responses, batches = FileStore(database), ResponseStore(database), BatchStore(database)
        file = new_file("a", "batch", None, "file-1")
        for size in (5000, 9000):  # the second replaces the first
            await files.put("alice", file, content(size))
        assert await has(database, "alice") == 9000
        await files.delete("alice", file.id)
        assert await has(database, "alice") == 0

        made = msgspec.convert(
            dict.fromkeys(ResponseObject.__struct_fields__)
            | {"id": "resp_1", "created_at": 0, "model": "m", "status": "in_progress", "output": [], "metadata": {}}
            | {"background": False, "parallel_tool_calls": False, "store": True, "top_logprobs": 0, "truncation": ""}
            | {"reasoning": {}, "text": {}, "tool_choice": "auto", "tools": []}
            | {"object": "response", "service_tier": "default"},
            ResponseObject,
        )
        await responses.add("alice", StoredResponse(made, []), [(0, b"x" * 100)])
        before = await has(database, "alice")
        await responses.mark_in_progress(made.id, [(0, b"x" * 100), (1, b"y" * 200)])
        assert await has(database, "alice") == before + 200
        await responses.update(replace(made, user="z" * 300))
        assert await has(database, "alice") == before + 200 + 300 - 2  # null before
        await responses.delete("alice", made.id)
        assert await has(database, "alice") == 0
        await responses.add("alice", StoredResponse(made, []), [(0, b"x" * 100)])
        monkeypatch.setattr(store_module.time, "time", lambda now=time.time: now() + RETENTION_SECONDS + 1)
        await responses.add("bob", StoredResponse(replace(made, id="resp_2"), []))  # which looks for old ones
        assert await has(database, "alice") == 0
        monkeypatch.undo()

        batch = BatchObject(
            id="batch_1", endpoint="e", input_file_id="f", completion_window="24h", status="in_progress",
            created_at=0, expires_at=0,
        )  # fmt: skip
        await batches.add("alice", batch)
        alone = await has(database, "alice")
        for _ in range(2):  # the first result stays
            await batches.add_result(batch.id, 1, False, b"r" * 1000)
        assert await has(database, "alice") == alone + 1000
        await batches.change("alice", batch.id, lambda batch: replace(batch, status="cancelled"))
        assert await has(database, "alice") < alone + 100

    with_database(tmp_path, scenario)


def test_what_an_earlier_release_stored_counts(tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        def older(connection: sqlite3.Connection) -> None:
            for event in ("insert", "update", "delete"):
                connection.execute(f"DROP TRIGGER files_counted_{event}")
            connection.execute("DROP TABLE owner_bytes")

        files = FileStore(database)
        for owner, size in (("alice", 5000), ("alice", 6000), ("bob", 7000)):
            await files.put(owner, new_file("a", "batch", None), content(size))
        await database.run(older)
        await files.put("bob", new_file("b", "batch", None), content(8000))
        assert (await has(database, "alice"), await has(database, "bob")) == (11_000, 15_000)

    with_database(tmp_path, scenario)


def test_one_keys_responses_leave_room_for_anothers(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-a", False) + "\n" + key_line("bob", "sk-b", False) + "\n")
    body = {"model": "", "input": "x" * 1500}

    async def scenario(caller: Caller) -> None:
        async def respond(key: str) -> Any:
            return await caller.post(RESPONSES, body, authorization=f"Bearer {key}")

        statuses = [(await respond("sk-a")).status_code for _ in range(60)]
        assert set(statuses) == {200, 413}
        refused = await respond("sk-a")
        error = (await refused.get_json())["error"]
        assert (error["code"], error["param"]) == ("storage_full", "store")
        assert "set store to false" in error["message"]
        assert (await respond("sk-b")).status_code == 200

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file), max_files="400KB"))
