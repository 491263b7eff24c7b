"""Chains of stored responses: long, large, broken and another key's; and how old ones are removed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from support.api_caller import Caller, drive, prompt_of
from support.responses_calls import RESPONSES

from motet.api.responses import conversations, store
from motet.api.responses.objects import OutputItem, ResponseObject
from motet.api.responses.store import ResponseStore, StoredResponse
from motet.core.errors import InvalidRequest, NotFound


def database(caller: Caller, query: str, *values: object) -> Any:
    """The rows that a query gives, in the database of stored responses."""

    def work(connection: sqlite3.Connection) -> Any:
        return connection.execute(query, values).fetchall()

    return caller.api.services.database.run(work)


async def chain(caller: Caller, turns: int, owner: str = "") -> ResponseStore:
    """The store with a chain of responses `r0`, `r1`, …: their inputs are `q0`, …, what they made has ids `a0`, …"""
    kept = ResponseStore(caller.api.services.database)
    answer = await caller.answer(RESPONSES, {"input": "hi", "store": False})
    first = msgspec.convert(answer, ResponseObject)
    text: OutputItem = first.output[0]
    for n in range(turns):
        made = replace(first, id=f"r{n}", previous_response_id=f"r{n - 1}" if n else None)
        made = replace(made, output=[replace(text, id=f"a{n}")])
        content = [{"type": "input_text", "text": f"q{n}"}]
        item = {"type": "message", "id": f"q{n}", "role": "user", "content": content}
        await kept.add(owner, StoredResponse(made, [item]))
    return kept


def test_a_chain_may_have_any_number_of_turns(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        kept = await chain(caller, 300)
        items = await kept.conversation("", "r299")
        assert [item["id"] for item in items] == [f"{kind}{n}" for n in range(300) for kind in "qa"]
        body = {"input": "And?", "previous_response_id": "r299", "truncation": "auto"}
        await caller.answer(RESPONSES, body)
        assert "q299<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nAnd?" in prompt_of(caller)

    drive(tmp_path, scenario)


def test_of_earlier_responses_nothing_but_their_items_is_read(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        kept = await chain(caller, 3)
        await database(caller, "UPDATE responses SET response = X'00'")
        assert len(await kept.conversation("", "r2")) == 6

    drive(tmp_path, scenario)


def test_a_conversation_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_CONVERSATION_BYTES", 1000)

    async def scenario(caller: Caller) -> None:
        kept = await chain(caller, 9)
        assert len(await kept.conversation("", "r1")) == 4
        body = {"input": "And?", "previous_response_id": "r8"}
        assert await caller.error(RESPONSES, body) == (400, "invalid_value", "previous_response_id")
        body = {"input": [{"type": "item_reference", "id": f"a{n}"} for n in range(9)]}
        status, _, param = await caller.error(RESPONSES, body)
        assert (status, str(param)[:6]) == (400, "input[")

    drive(tmp_path, scenario)


def test_what_is_gone_or_somebody_elses_is_not_found(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        kept = await chain(caller, 3, "Ada")
        assert len(await kept.items("Ada", {"q1": "a", "a1": "b"})) == 2
        with pytest.raises(NotFound):
            await kept.items("Eve", {"q1": "a"})
        with pytest.raises(NotFound):
            await kept.conversation("Eve", "r2")
        await kept.delete("Ada", "r0")
        with pytest.raises(NotFound, match="'r0'"):
            await kept.conversation("Ada", "r2")
        await database(caller, "UPDATE responses SET status = 'in_progress' WHERE id = 'r1'")
        with pytest.raises(InvalidRequest, match="'r1' is not complete"):
            await kept.conversation("Ada", "r2")

    drive(tmp_path, scenario)


def test_what_is_old_goes_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await chain(caller, 3)
        await database(caller, "UPDATE responses SET created = created - ?", store.RETENTION_SECONDS)
        assert (await caller.client.get(f"{RESPONSES}/r2")).status_code == 404
        await caller.answer(RESPONSES, {"input": "hi"})
        for table, count in (("responses", 1), ("response_outputs", 1), ("response_items", 2)):
            assert await database(caller, f"SELECT COUNT(*) FROM {table}") == [(count,)]
        [plan] = await database(caller, "EXPLAIN QUERY PLAN DELETE FROM responses WHERE created < 1")
        assert "INDEX responses_by_age" in plan[3]

    drive(tmp_path, scenario)
