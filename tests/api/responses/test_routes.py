"""OpenAI's Responses: shapes, the order of events, the store, chains, tools, the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from support.api_caller import Caller, drive, prompt_of
from support.responses_calls import CALL, RESPONSES, WEATHER, events_of
from support.scripted_server import Running, scripted_server


def test_a_response_has_openais_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await caller.answer(RESPONSES, {"input": "hi", "instructions": "Be brief.", "metadata": {"a": "b"}})
        assert prompt_of(caller).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")
        assert (answer["object"], answer["status"], answer["metadata"]) == ("response", "completed", {"a": "b"})
        [item] = answer["output"]
        assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
        assert item["content"] == [{"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}]
        usage = answer["usage"]
        assert usage["output_tokens"] == 7
        assert usage["total_tokens"] == usage["input_tokens"] + 7
        cut = await caller.answer(RESPONSES, {"input": "hi", "max_output_tokens": 3})
        assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert cut["output"][0]["status"] == "incomplete"

    drive(tmp_path, scenario)


def test_the_order_of_events(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        events = await events_of(caller, {"input": "hi"})
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert kinds == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            *["output_text.delta"] * 6,
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == "Hello!"
        last = events[-1]["response"]
        assert last["output"][0]["content"][0]["text"] == "Hello!"
        cut = await events_of(caller, {"input": "hi", "max_output_tokens": 2})
        assert cut[-1]["type"] == "response.incomplete"
        caller.api.engine.script = lambda request: f"Let me see.\n{CALL}"
        kinds = [
            e["type"].removeprefix("response.") for e in await events_of(caller, {"input": "hi", "tools": [WEATHER]})
        ]
        assert list(dict.fromkeys(kinds)) == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "completed",
        ]

    drive(tmp_path, scenario)


def test_what_is_stored_is_continued_listed_and_deleted(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: CALL
        first = await caller.answer(RESPONSES, {"input": "hi", "tools": [WEATHER]})
        [call] = first["output"]
        assert (call["type"], call["name"], call["arguments"]) == ("function_call", "weather", '{"city": "Oslo"}')
        caller.api.engine.script = lambda request: "Rain."
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "wet"}
        second = await caller.answer(RESPONSES, {"input": [output], "previous_response_id": first["id"]})
        assert CALL in prompt_of(caller)
        assert "<tool_response>\nwet" in prompt_of(caller)
        await caller.answer(RESPONSES, {"input": "Sure?", "previous_response_id": second["id"], "store": False})
        assert "assistant\nRain.<|im_end|>\n<|im_start|>user\nSure?" in prompt_of(caller)
        got = await (await caller.client.get(f"{RESPONSES}/{first['id']}")).get_json()
        assert got == first
        page = await (await caller.client.get(f"{RESPONSES}/{first['id']}/input_items?limit=1")).get_json()
        assert page["data"][0]["content"] == [{"type": "input_text", "text": "hi"}]
        assert (page["has_more"], page["first_id"]) == (False, page["data"][0]["id"])
        gone = await (await caller.client.delete(f"{RESPONSES}/{first['id']}")).get_json()
        assert gone == {"id": first["id"], "object": "response", "deleted": True}
        assert (await caller.client.get(f"{RESPONSES}/{first['id']}")).status_code == 404
        found = await caller.error(RESPONSES, {"input": "a", "previous_response_id": second["id"]})
        assert found == (404, "previous_response_not_found", "previous_response_id")

    drive(tmp_path, scenario)


def test_messages_that_do_not_fit_are_dropped_only_if_asked(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        words = [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y" * 900}]
        items = [*words, {"role": "user", "content": "z" * 900}]
        found = await caller.error(RESPONSES, {"input": items})
        assert found == (400, "context_length_exceeded", "input")
        await caller.answer(RESPONSES, {"input": items, "truncation": "auto"})
        assert "x" not in prompt_of(caller)
        assert "yyy" in prompt_of(caller)

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "compaction_trigger"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": "a", "tools": [{"type": "fortune"}]}, "tools[0].type"),
        ({"input": "a", "conversation": "c"}, "conversation"),
        ({"input": "a", "background": True, "store": False}, "background"),
        ({"input": "a", "max_output_tokens": 9999}, "max_output_tokens"),
        ({"input": "a", "text": {"format": {"type": "poem"}}}, "text.format.type"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "n", "schema": 3}}}, "text.format.schema"),
        ({"input": "a", "metadata": {"k": "v" * 600}}, "metadata"),
        ({"input": "a", "tool_choice": "required"}, "tool_choice"),
        ({"input": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"input": "a", "max_tokens": 5}, "max_tokens"),
        ({"input": "a", "lora": [{"id": 0}]}, "lora"),
        ({"input": "a", "extra_body": {"top_k": 1}}, "extra_body"),
        ({"input": "a", "top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_mistakes_are_named_as_the_caller_knows_them(tmp_path: Path, body: dict[str, Any], param: str) -> None:
    async def scenario(caller: Caller) -> None:
        status, _, found = await caller.error(RESPONSES, body)
        assert status == 400
        assert found is not None
        assert found.startswith(param)
        assert caller.api.engine.submits == []

    drive(tmp_path, scenario)


def test_input_tokens_are_counted_and_nothing_runs(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        counted = await caller.answer(f"{RESPONSES}/input_tokens", {"input": "hi"})
        assert caller.api.engine.submits == []
        answer = await caller.answer(RESPONSES, {"input": "hi"})
        assert counted["input_tokens"] == answer["usage"]["input_tokens"]

    drive(tmp_path, scenario)


def with_sdk(tmp_path: Path, scenario: Callable[[AsyncOpenAI, Running], Awaitable[None]]) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            await scenario(client, server)
            await client.close()

    asyncio.run(main())


def test_the_sdk_streams_and_parses(tmp_path: Path) -> None:
    class Sea(BaseModel):
        name: str

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        server.api.engine.script = lambda request: f"Let me see.\n{CALL}"
        tools: Any = [WEATHER]
        async with client.responses.stream(model="", input="hi", tools=tools) as stream:
            final = await stream.get_final_response()
        assert final.output_text == "Let me see."
        assert [item.type for item in final.output] == ["message", "function_call"]
        server.api.engine.script = lambda request: '{"name": "Baltic"}'
        parsed = await client.responses.parse(model="", input="hi", text_format=Sea)
        assert parsed.output_parsed == Sea(name="Baltic")

    with_sdk(tmp_path, scenario)


def test_the_background(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        engine = server.api.engine
        engine.step_seconds = 0.02
        response = await client.responses.create(model="", input="hi", background=True)
        assert response.status == "queued"
        async with asyncio.timeout(10):
            while (response := await client.responses.retrieve(response.id)).status in ("queued", "in_progress"):
                await asyncio.sleep(0.02)
        assert (response.status, response.output_text) == ("completed", "Hello!")
        with pytest.raises(openai.ConflictError):
            await client.responses.cancel(response.id)
        engine.step_seconds = 5
        slow = await client.responses.create(model="", input="hi", background=True)
        assert (await client.responses.cancel(slow.id)).status == "cancelled"
        assert engine.cancelled == [slow.id]
        assert (await client.responses.retrieve(slow.id)).status == "cancelled"
        engine.step_seconds = 0
        plain = await client.responses.create(model="", input="hi", extra_body={"seed": 1}, store=True)
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(plain.id)

    with_sdk(tmp_path, scenario)


def test_a_failure_in_the_background_is_reported(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        server.api.engine.fail_after = 2
        response = await client.responses.create(model="", input="hi", background=True)
        async with asyncio.timeout(10):
            while (response := await client.responses.retrieve(response.id)).status in ("queued", "in_progress"):
                await asyncio.sleep(0.02)
        assert response.status == "failed"
        assert response.error is not None

    with_sdk(tmp_path, scenario)
