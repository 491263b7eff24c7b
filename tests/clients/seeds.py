"""The objects whose ids the openai package's own tests have built in, written straight into a server's database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from motet.api.batches.objects import BatchObject
from motet.api.batches.store import BatchStore
from motet.api.responses.generation import frame
from motet.api.responses.objects import ResponseObject
from motet.api.responses.store import ResponseStore, StoredResponse
from motet.api.storage.database import Database
from motet.api.storage.files import FileObject, FileStore
from motet.api.storage.paging import Page
from motet.core.errors import NotFound

RESPONSES = ("resp_677efb5139a88190b512bc3fef8e535d", "resp_123", "response_id")
FILES = ("file_id", "input_file_id")
BATCH = "batch_id"
PAGE = Page(1, True, None)
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "", "input": "hi"}}
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
]


def seed(directory: Path) -> None:
    """Put them (back) into the data directory of a running server."""
    asyncio.run(_seed(Database(directory)))


async def _seed(database: Database) -> None:
    files, batches, responses = FileStore(database), BatchStore(database), ResponseStore(database)
    await asyncio.gather(files.list("", None, PAGE), batches.list("", PAGE), _get(responses))  # make the tables
    now = int(time.time())
    content = json.dumps(LINE).encode()
    common: dict[str, Any] = {"bytes": len(content), "created_at": now, "filename": "in.jsonl", "purpose": "batch"}
    facts = [FileObject(id=id, **common) for id in FILES]

    def clear(connection: sqlite3.Connection) -> None:
        for table, ids in (("files", FILES), ("batches", (BATCH,)), ("responses", RESPONSES)):
            connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in ids])
        connection.executemany(
            "INSERT INTO files (id, owner, purpose, bytes, file) VALUES (?, '', 'batch', 1, ?)",
            [(file.id, msgspec.json.encode(file)) for file in facts],
        )

    await database.run(clear)
    (database.directory / "files").mkdir(exist_ok=True)
    for file in facts:
        files.path(file.id).write_bytes(content)
    await batches.add("", _batch(now))
    await database.run(  # somebody else's, so that nobody runs it
        lambda connection: connection.execute("UPDATE batches SET lease = ? WHERE id = ?", (now + 3600, BATCH))
    )
    for id in RESPONSES:
        response = _response(id, now)
        begun = frame(("response.created", {"response": response}), 0)
        await responses.add("", StoredResponse(response, ITEMS), [(0, begun)])
    await database.close()


async def _get(responses: ResponseStore) -> None:
    with suppress(NotFound):
        await responses.get("", "none")


def _batch(now: int) -> BatchObject:
    return BatchObject(
        id=BATCH,
        endpoint="/v1/responses",
        input_file_id=FILES[1],
        completion_window="24h",
        status="in_progress",
        created_at=now,
        expires_at=now + 86400,
    )


def _response(id: str, now: int) -> ResponseObject:
    return ResponseObject(
        id=id,
        created_at=now,
        # In the background and not complete where it is to be cancelled; what others continue is complete.
        status="in_progress" if id == RESPONSES[0] else "completed",
        background=True,
        instructions=None,
        max_output_tokens=None,
        max_tool_calls=None,
        model="gpt-4o",
        parallel_tool_calls=True,
        previous_response_id=None,
        reasoning={},
        store=True,
        temperature=None,
        text={"format": {"type": "text"}},
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=None,
        truncation="disabled",
        user=None,
        metadata={},
    )
