"""Responses in the background that stream: read as they come, later, by another process, or after a cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseErrorEvent
from support.api_caller import Caller, drive
from support.responses_calls import CALL, RESPONSES, WEATHER, events_of, read_events
from support.scripted_server import scripted_server

from motet.api.responses import background, stored_stream
from motet.api.responses.background import Background
from motet.api.responses.store import ResponseStore
from motet.core.messages import AddRequest

STREAMED: dict[str, Any] = {"input": "hi", "background": True}


async def replayed(caller: Caller, id: str, query: str = "") -> list[dict[str, Any]]:
    return await read_events(await caller.client.get(f"{RESPONSES}/{id}?stream=true{query}"))


def bare(event: dict[str, Any]) -> dict[str, Any]:
    """The event without what differs from one response to the next."""
    found = {name: value for name, value in event.items() if name not in ("sequence_number", "response", "item_id")}
    if "item" in found:
        found["item"] = {n: v for n, v in found["item"].items() if n not in ("id", "call_id")}
    return found


def test_the_events_are_those_of_a_plain_stream(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: f"Let me see. {CALL}"
        plain = await events_of(caller, {"input": "hi", "tools": [WEATHER]})
        events = await events_of(caller, {**STREAMED, "tools": [WEATHER]})
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[1]["type"] == "response.queued"
        assert [bare(event) for event in events if event["type"] != "response.queued"] == [bare(e) for e in plain]
        id = events[0]["response"]["id"]
        assert await replayed(caller, id) == events
        assert await replayed(caller, id, "&starting_after=4") == events[5:]
        assert await replayed(caller, id, f"&starting_after={len(events)}") == []
        stored = await (await caller.client.get(f"{RESPONSES}/{id}")).get_json()
        assert stored == events[-1]["response"]

    drive(tmp_path, scenario)


def test_only_what_was_made_to_stream_does(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for body in ({"input": "hi"}, STREAMED):
            made = await caller.answer(RESPONSES, body)
            response = await caller.client.get(f"{RESPONSES}/{made['id']}?stream=true")
            assert (response.status_code, (await response.get_json())["error"]["param"]) == (400, "stream")
        for query, param in (("stream=perhaps", "stream"), ("stream=true&starting_after=-1", "starting_after")):
            response = await caller.client.get(f"{RESPONSES}/{made['id']}?{query}")
            assert (response.status_code, (await response.get_json())["error"]["param"]) == (400, param)
        assert (await caller.client.get(f"{RESPONSES}/resp_0?stream=true")).status_code == 404

    drive(tmp_path, scenario)


async def first_of(stream: AsyncIterator[Any], count: int) -> list[Any]:
    return [await anext(stream) for _ in range(count)]


def test_a_reader_may_leave_and_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            server.api.engine.script = lambda _: "x" * 200
            server.api.engine.step_seconds = 0.005
            stream = await client.responses.create(model="", input="hi", background=True, stream=True)
            seen = await first_of(aiter(stream), 8)
            await stream.close()
            assert seen[-1].type == "response.output_text.delta", "streamed while it is made"
            id = seen[0].response.id
            assert (await client.responses.retrieve(id)).status == "in_progress"
            rest = await client.responses.retrieve(id, stream=True, starting_after=seen[-1].sequence_number)
            seen += [event async for event in rest]
            assert [event.sequence_number for event in seen] == list(range(len(seen)))
            text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
            assert text == "x" * 200 == seen[-1].response.output_text
            await client.close()

    asyncio.run(main())


def test_a_reader_who_has_everything_so_far_is_answered_before_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            begin, generate = asyncio.Event(), server.api.engine.generate

            async def held(request: AddRequest) -> AsyncIterator[Any]:
                await begin.wait()
                async for events in generate(request):
                    yield events

            monkeypatch.setattr(server.api.engine, "generate", held)
            made = await client.responses.create(model="", input="hi", background=True, stream=True)
            seen = await first_of(aiter(made), 3)
            await made.close()
            id, latest = seen[0].response.id, seen[-1].sequence_number
            try:
                async with asyncio.timeout(5):
                    rest = await client.responses.retrieve(id, stream=True, starting_after=latest)
            finally:
                begin.set()
            seen += [event async for event in rest]
            assert [event.sequence_number for event in seen] == list(range(len(seen)))
            assert seen[-1].type == "response.completed"
            await client.close()

    asyncio.run(main())


def test_another_process_tells_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_stream, "POLL_SECONDS", 0.01)

    async def scenario(caller: Caller) -> None:
        caller.api.engine.step_seconds = 0.01
        reading = asyncio.create_task(events_of(caller, STREAMED))
        services = caller.api.services
        async with asyncio.timeout(5):
            while not caller.api.engine.running:
                await asyncio.sleep(0.005)
        id = caller.api.engine.submits[-1].id.rpartition("-")[0]
        other = stored_stream.StoredStream(ResponseStore(services.database), Background(services), "", id, -1)
        frames = b"".join([frame async for frame in other.frames()])
        events = [json.loads(frame.partition(b"data: ")[2]) for frame in frames.strip().split(b"\n\n")]
        assert events == await reading

    drive(tmp_path, scenario)


def test_what_is_deleted_while_it_is_read_ends_with_an_error_event(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: "x" * 200
        caller.api.engine.step_seconds = 0.01
        reading = asyncio.create_task(events_of(caller, STREAMED))
        while not caller.api.engine.running:
            await asyncio.sleep(0.01)
        id = caller.api.engine.submits[0].id.rpartition("-")[0]
        await caller.client.delete(f"{RESPONSES}/{id}")
        last = ResponseErrorEvent.model_validate((await reading)[-1])
        assert (last.type, last.code, last.param) == ("error", "not_found", "response_id")

    drive(tmp_path, scenario)


@pytest.mark.parametrize("how", ["cancel", "delete", "fail"])
def test_a_stream_tells_how_its_response_ended(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(stored_stream, "POLL_SECONDS", 0.05)

    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            engine = server.api.engine
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            engine.script = lambda _: "x" * 100
            engine.step_seconds = 0.02
            engine.fail_after = 20 if how == "fail" else None
            stream = await client.responses.create(model="", input="hi", background=True, stream=True)
            events = aiter(stream)
            id = (await first_of(events, 6))[0].response.id
            if how == "cancel":
                await client.responses.cancel(id)
            elif how == "delete":
                await client.responses.delete(id)
            with pytest.raises(openai.APIError) as raised:
                async for _ in events:
                    pass
            wanted = {"cancel": "request_cancelled", "delete": "not_found", "fail": "internal_error"}
            assert raised.value.code == wanted[how]
            if how == "cancel":
                assert (await client.responses.retrieve(id)).status == "cancelled"
            await client.close()

    asyncio.run(main())
