"""Streamed responses in the store: present from their start, with the status with which they ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.responses import ResponseStreamEvent
from support.api_caller import Caller, drive
from support.responses_calls import RESPONSES, events_of
from support.scripted_server import Running, scripted_server

from motet.api.responses import conversations, store
from motet.api.responses import retention as keeping
from motet.core.errors import Overloaded, Unavailable

Stream = AsyncStream[ResponseStreamEvent]


async def status_of(client: AsyncOpenAI, id: str, wanted: str) -> None:
    """Wait until the stored response has that status."""
    async with asyncio.timeout(5):
        while (await client.responses.retrieve(id)).status != wanted:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def streaming(root: Path) -> AsyncIterator[tuple[Running, AsyncOpenAI, Stream, str]]:
    """A server, a client, and its stream of a long response, begun, with its id."""
    async with scripted_server(root) as server:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        server.api.engine.script = lambda _: "x" * 200
        server.api.engine.step_seconds = 0.01
        stream = await client.responses.create(model="", input="hi", stream=True)
        created = await anext(aiter(stream))
        assert created.type == "response.created"
        yield server, client, stream, created.response.id
        await client.close()


def test_a_stream_is_stored_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(conversations, "STALE_SECONDS", 0.5)  # less than it takes

    async def main() -> None:
        async with streaming(tmp_path) as (_, client, stream, id):
            assert (await client.responses.retrieve(id)).status == "in_progress"
            with pytest.raises(openai.BadRequestError, match="not complete yet"):
                await client.responses.create(model="", input="and?", previous_response_id=id)
            await asyncio.sleep(0.8)
            assert (await client.responses.retrieve(id)).status == "in_progress", "it shows that it is being made"
            *_, last = [event async for event in stream]
            assert last.type == "response.completed"
            assert await client.responses.retrieve(id) == last.response

    asyncio.run(main())


@pytest.mark.parametrize(("how", "status"), [("leave", "cancelled"), ("stop", "failed")])
def test_a_stream_that_is_cut_does_not_look_alive(tmp_path: Path, how: str, status: str) -> None:
    async def main() -> None:
        async with streaming(tmp_path) as (server, client, stream, id):
            drain = server.api.services.drain
            if how == "leave":
                await stream.close()
            else:
                drain.draining = True
                drain.cancel_remaining()
                with pytest.raises(openai.APIError, match="shut down"):
                    async for _ in stream:
                        pass
                drain.draining = False
            await status_of(client, id, status)
            assert not server.api.engine.running

    asyncio.run(main())


def test_a_stream_that_is_deleted_stays_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with streaming(tmp_path) as (_, client, stream, id):
            await client.responses.delete(id)
            assert [event async for event in stream][-1].type == "response.completed"
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(id)

    asyncio.run(main())


def count(caller: Caller) -> Any:
    def work(connection: Any) -> int:
        tables = ("responses", "response_outputs", "response_items")
        return sum(int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]) for table in tables)

    return caller.api.services.database.run(work)


def test_a_failed_stream_leaves_nothing_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(caller: Caller) -> None:
        await events_of(caller, {"input": "hi"})
        before = await count(caller)
        caller.api.engine.fail_after = 0
        assert (await caller.post(RESPONSES, {"input": "hi", "stream": True})).status_code == 500
        caller.api.engine.fail_after = None
        monkeypatch.setattr(store, "MAX_STORED_BYTES", 100)
        assert await caller.error(RESPONSES, {"input": "hi", "stream": True}) == (400, "invalid_value", "store")
        assert await count(caller) == before
        assert not caller.api.engine.running
        await events_of(caller, {"input": "hi", "store": False})
        assert await count(caller) == before

    drive(tmp_path, scenario)


def test_a_response_that_grows_too_large_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_STORED_BYTES", 2000)

    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "x" * 1500
        events = await events_of(caller, {"input": "hi"})
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        last = events[-1]
        assert (last["type"], last["error"]["param"]) == ("response.failed", "store")
        kept = await caller.client.get(f"{RESPONSES}/{last['response']['id']}")
        assert (await kept.get_json())["status"] == "failed"

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("failure", "code", "kind"),
    [
        (Unavailable("away"), "engine_unavailable", "server_error"),
        (Overloaded("full"), "overloaded", "rate_limit_exceeded"),
        (RecursionError(), "invalid_json", "invalid_prompt"),
    ],
)
def test_a_failed_response_has_a_code_of_openais(tmp_path: Path, failure: Any, code: str, kind: str) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.failure, caller.api.engine.fail_after = failure, 2
        last = (await events_of(caller, {"input": "hi"}))[-1]
        assert (last["error"]["code"], last["response"]["error"]["code"]) == (code, kind)
        kept = await (await caller.client.get(f"{RESPONSES}/{last['response']['id']}")).get_json()
        assert kept["error"]["code"] == kind

    drive(tmp_path, scenario)


def test_what_is_nested_too_deeply_is_the_callers_mistake(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.failure, caller.api.engine.fail_after = RecursionError(), 0
        found = await caller.error(RESPONSES, {"input": "hi", "stream": True})
        assert found == (400, "invalid_json", None)

    drive(tmp_path, scenario)
