"""Reads what later responses use of stored ones: the conversation up to a response, and single items.

The functions run inside a transaction, in the database's thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from motet.api.responses.objects import OutputItem, ResponseObject
from motet.core import error_codes
from motet.core.errors import InvalidRequest, NotFound

STALE_SECONDS = 30.0
"""A response that is not marked as in progress for this long will not be finished."""

MAX_CONVERSATION_BYTES = 16 << 20
"""Limit on the stored items that one request may continue, and on the responses with the items that it references."""

RUNNING = ("queued", "in_progress")

TABLES = (
    # The output that a conversation continues; not in the table of responses, whose rows have long tools.
    "CREATE TABLE IF NOT EXISTS response_outputs (id TEXT PRIMARY KEY, output BLOB NOT NULL)",
    """CREATE TABLE IF NOT EXISTS response_items (
        item TEXT NOT NULL, response TEXT NOT NULL, PRIMARY KEY (item, response)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS response_items_by_response ON response_items (response)",
    """CREATE TRIGGER IF NOT EXISTS response_items_gone AFTER DELETE ON responses BEGIN
        DELETE FROM response_outputs WHERE id = OLD.id;
        DELETE FROM response_items WHERE response = OLD.id;
    END""",
)
_CHAIN = """
    WITH RECURSIVE chain (id, previous, status, alive, bytes, turn) AS (
        SELECT id, previous, status, alive, length(input) + length(output), 0
        FROM responses JOIN response_outputs USING (id) WHERE id = :id AND owner = :owner
        UNION ALL
        SELECT r.id, r.previous, r.status, r.alive, chain.bytes + length(r.input) + length(o.output), turn + 1
        FROM chain JOIN responses r ON r.id = chain.previous JOIN response_outputs o ON o.id = r.id
        WHERE r.owner = :owner AND chain.bytes <= :most
    )
    SELECT id, previous, status, alive, bytes FROM chain ORDER BY turn
"""
_HOLDER = """
    SELECT input, output FROM response_items i JOIN responses r ON r.id = i.response JOIN response_outputs USING (id)
    WHERE item = ? AND owner = ? ORDER BY created DESC LIMIT 1
"""

Item = dict[str, Any]


def continued_output(response: ResponseObject) -> list[OutputItem]:
    """The output items that a continued conversation uses."""
    # A call that was cut has incomplete arguments.
    complete = [item for item in response.output if item.type == "message" or item.status != "incomplete"]
    return [_without_logprobs(item) for item in complete]


def _without_logprobs(item: OutputItem) -> OutputItem:
    return item if item.content is None else replace(item, content=[replace(p, logprobs=[]) for p in item.content])


def store_output(connection: sqlite3.Connection, response: ResponseObject, input_ids: Iterable[str] = ()) -> None:
    """Store the response's output, and the ids of its output and input items."""
    output = continued_output(response)
    connection.execute("REPLACE INTO response_outputs VALUES (?, ?)", (response.id, msgspec.json.encode(output)))
    ids = [*input_ids, *(item.id for item in output)]
    connection.executemany("INSERT OR IGNORE INTO response_items VALUES (?, ?)", [(id, response.id) for id in ids])


def conversation(connection: sqlite3.Connection, owner: str, id: str) -> list[Item]:
    """The input and output items of the response `id` and of those before it. Raises InvalidRequest, NotFound."""
    values = {"id": id, "owner": owner, "most": MAX_CONVERSATION_BYTES}
    chain = connection.execute(_CHAIN, values).fetchall()
    for earlier_id, _, status, alive, _ in chain:
        if status in RUNNING and not is_stale(status, alive):
            raise InvalidRequest(f"the response {earlier_id!r} is not complete yet", param="previous_response_id")
    missing, total = (chain[-1][1], chain[-1][4]) if chain else (id, 0)
    if total > MAX_CONVERSATION_BYTES:
        raise InvalidRequest(
            f"the responses before this one have over {MAX_CONVERSATION_BYTES} bytes; start a new conversation",
            param="previous_response_id",
        )
    if missing is not None:
        raise NotFound(
            f"there is no response {missing[:80]!r} (any more)",
            param="previous_response_id",
            code=error_codes.PREVIOUS_RESPONSE_NOT_FOUND,
        )
    query = "SELECT input, output FROM responses JOIN response_outputs USING (id) WHERE id = ?"
    turns = (connection.execute(query, (row[0],)).fetchone() for row in reversed(chain))
    return [item for turn in turns for part in turn for item in _decoded(part)]


def stored_items(connection: sqlite3.Connection, owner: str, field_of_id: Mapping[str, str]) -> dict[str, Item]:
    """The owner's stored items, by id; `field_of_id` has the request field of each.

    Raises NotFound, or InvalidRequest if the responses to read are too large, with the field.
    """
    items: dict[str, Item] = {}
    total = 0
    for id, field in field_of_id.items():
        if id in items:
            continue
        holder = connection.execute(_HOLDER, (id, owner)).fetchone()
        if holder is None:
            raise NotFound(f"there is no stored item {id[:80]!r}", param=field, code=error_codes.NOT_FOUND)
        total += sum(map(len, holder))
        if total > MAX_CONVERSATION_BYTES:
            raise InvalidRequest(
                f"the responses with the items have over {MAX_CONVERSATION_BYTES} bytes; send the items instead",
                param=field,
            )
        for part in holder:
            items.update((item["id"], item) for item in _decoded(part) if item["id"] not in items)
    return items


def is_stale(status: str, alive: float) -> bool:
    """Whether a response in progress is not generated any more, since its last mark, at `alive`, is too old."""
    return status in RUNNING and time.time() - alive > STALE_SECONDS


def _decoded(part: bytes) -> list[Item]:
    items: list[Item] = msgspec.json.decode(part)
    return items
