"""Responses that fail, are cancelled or deleted while they run, and calls that are cut short."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import Caller, drive
from support.responses_calls import CALL, RESPONSES, WEATHER, events_of

from motet.api.responses import background
from motet.api.responses.store import Frame, ResponseStore
from motet.core.errors import Unavailable


async def stored(caller: Caller, id: str) -> tuple[int, dict[str, Any]]:
    response = await caller.client.get(f"{RESPONSES}/{id}")
    return response.status_code, json.loads(await response.get_data())


async def ended(caller: Caller, id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while (found := (await stored(caller, id))[1])["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
    return found


@asynccontextmanager
async def running(caller: Caller, text: str = "x" * 60) -> AsyncIterator[str]:
    """The id of a response in the background that is being made."""
    caller.api.engine.script = lambda _: text
    caller.api.engine.step_seconds = 0.01
    made = await caller.answer(RESPONSES, {"input": "hi", "background": True})
    async with asyncio.timeout(5):
        while not caller.api.engine.running:
            await asyncio.sleep(0.005)
    yield made["id"]


def test_a_stream_that_fails_on_the_way_says_so_and_is_stored(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.fail_after = 2
        events = await events_of(caller, {"input": "hi"})
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        last = events[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"] == {"code": "server_error", "message": "scripted"}
        assert (last["error"]["code"], last["error"]["message"]) == ("internal_error", "scripted")
        status, kept = await stored(caller, events[0]["response"]["id"])
        assert (status, kept["status"], kept["error"]["message"]) == (200, "failed", "scripted")
        caller.api.engine.fail_after = 0
        early = await caller.post(RESPONSES, {"input": "hi", "stream": True})
        assert (early.status_code, (await early.get_json())["error"]["message"]) == (500, "scripted")

    drive(tmp_path, scenario)


def test_what_is_deleted_while_it_is_made_stays_deleted(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async with running(caller) as id:
            assert (await stored(caller, id))[1]["status"] == "in_progress"
            assert (await caller.client.delete(f"{RESPONSES}/{id}")).status_code == 200
            assert id in caller.api.engine.cancelled
            while caller.api.engine.running:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert (await stored(caller, id))[0] == 404

    drive(tmp_path, scenario)


def test_an_engine_that_goes_down_does_not_undo_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def goes_down(group: str) -> int:
        raise Unavailable("the engine was restarted; the request was not completed, try again")

    async def scenario(caller: Caller) -> None:
        monkeypatch.setattr(caller.api.engine, "cancel", goes_down)
        async with running(caller) as id:
            response = await caller.client.post(f"{RESPONSES}/{id}/cancel")
            assert (response.status_code, (await response.get_json())["status"]) == (200, "cancelled")
            response = await caller.client.delete(f"{RESPONSES}/{id}")
            assert (response.status_code, (await response.get_json())["deleted"]) == (200, True)

    drive(tmp_path, scenario)


def test_cancelling_what_has_just_been_completed_changes_nothing(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        made = await caller.answer(RESPONSES, {"input": "hi", "background": True})
        done = await ended(caller, made["id"])
        store = ResponseStore(caller.api.services.database)
        assert not await store.update((await store.get("", made["id"])).response)
        assert (await caller.client.post(f"{RESPONSES}/{made['id']}/cancel")).status_code == 409
        assert (await stored(caller, made["id"]))[1] == done

    drive(tmp_path, scenario)


def test_a_database_that_is_busy_for_a_moment_costs_no_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "BEAT_SECONDS", 0.01)
    alive = ResponseStore.mark_in_progress

    async def sometimes(self: ResponseStore, id: str, frames: Sequence[Frame] = ()) -> bool:
        if not hasattr(self, "failed"):
            self.failed = True  # type: ignore[attr-defined]
            raise sqlite3.OperationalError("database is locked")
        return await alive(self, id, frames)

    monkeypatch.setattr(ResponseStore, "mark_in_progress", sometimes)

    async def scenario(caller: Caller) -> None:
        async with running(caller) as id:
            assert (await ended(caller, id))["status"] == "completed"

    drive(tmp_path, scenario)


def test_a_drain_waits_for_the_background_and_says_what_it_cut(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async with running(caller, "x" * 500) as id:
            drain = caller.api.services.drain
            drain.refuse_new_requests()
            assert not await drain.wait(0.05)
            drain.cancel_remaining()
            assert await drain.wait(2.0)
            drain.draining = False
            found = await ended(caller, id)
            assert (found["status"], found["error"]["code"]) == ("failed", "server_error")

    drive(tmp_path, scenario)


def test_a_call_that_was_cut_does_not_end_the_conversation(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: f"Wait. {CALL}"
        cut = await caller.answer(RESPONSES, {"input": "hi", "tools": [WEATHER], "max_output_tokens": 60})
        assert [item["status"] for item in cut["output"]] == ["completed", "incomplete"]
        next_one = {"input": "and?", "previous_response_id": cut["id"], "tools": [WEATHER]}
        assert (await caller.answer(RESPONSES, next_one))["status"] == "completed"

    drive(tmp_path, scenario)


def test_text_after_a_call_stays_out_of_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: CALL + " And so on."
        held = {"stop": ["}}\n</tool_call> And so on!"]}  # all of it comes in one delta
        for fields in ({}, held):
            answer = await caller.answer(RESPONSES, {"input": "hi", "tools": [WEATHER], **fields})
            call, message = answer["output"]
            assert json.loads(call["arguments"]) == {"city": "Oslo"}
            assert message["content"][0]["text"].strip() == "And so on."
            events = await events_of(caller, {"input": "hi", "tools": [WEATHER], **fields})
            pieces = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
            assert "".join(e["delta"] for e in pieces) == call["arguments"]

    drive(tmp_path, scenario)


def test_logprobs_have_no_gaps_beside_tools(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "Hello big world"
        include = {"include": ["message.output_text.logprobs"]}
        for tools in ([], [WEATHER]):
            answer = await caller.answer(RESPONSES, {"input": "hi", "tools": tools, **include})
            [part] = answer["output"][0]["content"]
            assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == "Hello big world"

    drive(tmp_path, scenario)
