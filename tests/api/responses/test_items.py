"""Input items of responses: references to stored items, calls and their outputs, ids, and error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.api_caller import Caller, drive, prompt_of
from support.responses_calls import CALL, RESPONSES, WEATHER, events_of

from motet.api.responses.input_items import chat_messages, input_items
from motet.api.responses.tools import FlatTools
from motet.engine.client.tokenizer import GenerationDefaults

CALLED: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": "wet"}


async def listed(caller: Caller, id: str, query: str = "") -> list[dict[str, Any]]:
    page = await (await caller.client.get(f"{RESPONSES}/{id}/input_items?order=asc{query}")).get_json()
    data: list[dict[str, Any]] = page["data"]
    return data


def test_stored_items_can_be_referred_to(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        first = await caller.answer(RESPONSES, {"input": "hi"})
        [question] = await listed(caller, first["id"])
        [answer] = first["output"]
        references = [{"type": "item_reference", "id": question["id"]}, {"id": answer["id"]}]
        second = await caller.answer(RESPONSES, {"input": [*references, {"role": "user", "content": "Sure?"}]})
        conversation = "user\nhi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nSure?"
        assert conversation in prompt_of(caller)
        items = await listed(caller, second["id"])
        assert [item["id"] for item in items[:2]] == [question["id"], answer["id"]]
        assert (await caller.client.delete(f"{RESPONSES}/{first['id']}")).status_code == 200
        await caller.answer(RESPONSES, {"input": references})
        assert "Hello!" in prompt_of(caller), "the second response holds them, too"

    drive(tmp_path, scenario)


def test_a_reference_to_nothing_is_a_404(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        kept = await caller.answer(RESPONSES, {"input": "hi"})
        gone = {"type": "item_reference", "id": kept["output"][0]["id"]}
        await caller.client.delete(f"{RESPONSES}/{kept['id']}")
        unkept = await caller.answer(RESPONSES, {"input": "hi", "store": False})
        for reference in (gone, {"type": "item_reference", "id": unkept["output"][0]["id"]}):
            body = {"input": [{"role": "user", "content": "a"}, reference]}
            assert await caller.error(RESPONSES, body) == (404, "not_found", "input[1].id")
        body = {"input": [{"type": "item_reference"}]}
        assert await caller.error(RESPONSES, body) == (400, "missing_required_parameter", "input[0].id")

    drive(tmp_path, scenario)


def test_results_are_kept_as_they_came(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        parts = [{"type": "input_text", "text": "wet"}, {"type": "input_text", "text": " and cold"}]
        first = await caller.answer(RESPONSES, {"input": [CALLED, {**RESULT, "output": parts}], "tools": [WEATHER]})
        assert "wet and cold" in prompt_of(caller)
        result = (await listed(caller, first["id"]))[1]
        assert (result["output"], result["status"]) == (parts, "completed")
        await caller.answer(RESPONSES, {"input": "And?", "previous_response_id": first["id"]})
        assert "wet and cold" in prompt_of(caller)

    drive(tmp_path, scenario)


def test_items_with_the_same_id_get_distinct_ids(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        items = [{"role": "user", "content": text, "id": "msg_1"} for text in "abc"]
        made = await caller.answer(RESPONSES, {"input": items})
        ids = [item["id"] for item in await listed(caller, made["id"])]
        assert ids[0] == "msg_1"
        assert len(set(ids)) == 3
        [second] = await listed(caller, made["id"], "&limit=1&after=msg_1")
        assert second["content"][0]["text"] == "b"

    drive(tmp_path, scenario)


def test_a_text_after_a_call_does_not_part_it_from_its_result() -> None:
    def text(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    said = [text("assistant", "Wait."), CALLED, text("assistant", "So."), {**CALLED, "call_id": "d"}]
    items = input_items([*said, RESULT, {**RESULT, "call_id": "d"}, text("assistant", "Wet.")])
    messages = chat_messages(items, FlatTools().name_of)
    assert [(m.role, m.content) for m in messages] == [
        ("assistant", "Wait.\nSo."),
        ("tool", "wet"),
        ("tool", "wet"),
        ("assistant", "Wet."),
    ]
    assert [call.id for call in messages[0].tool_calls or ()] == ["c", "d"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_output_tokens": 9999}, "max_output_tokens", "max_output_tokens can be"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice", "requires web_search_preview, a hosted tool"),
        ({"tool_choice": {"type": "fortune"}}, "tool_choice", '{"type": "function", "name": …}'),
        (
            {"tool_choice": "required", "tools": [{"type": "web_search"}]},
            "tool_choice",
            "requires web_search, a hosted tool",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice", '{"type": "function", "name": …}'),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}},
            "tool_choice.tools[0]",
            '{"type": "function", "name": …}',
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
            "tool_choice.tools",
            "allows none of the tools",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": 3}}, "tools": None},
            "text.format.schema",
            "the schema must be a JSON object",
        ),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream_options requires stream"),
    ],
)
def test_errors_speak_of_responses(tmp_path: Path, fields: dict[str, Any], param: str, words: str) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.post(RESPONSES, {"input": "hi", "tools": [WEATHER], **fields})
        error = (await response.get_json())["error"]
        assert response.status_code == 400
        assert error["param"] == param
        assert words in error["message"]
        assert not any(
            name in error["message"] for name in ("max_completion", "response_format", "allowed_tools.tools")
        )

    drive(tmp_path, scenario)


def test_a_template_s_refusal_names_the_input(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        found = await caller.error(RESPONSES, {"input": "hi", "instructions": "Be brief."})
        assert found == (400, "invalid_value", "input")

    drive(tmp_path, scenario, "{{ raise_exception('no') }}")


def test_the_response_says_what_was_used(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.services.tokenizer.generation = GenerationDefaults(temperature=0.25, top_p=0.5)
        named = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}
        caller.api.engine.script = lambda _: CALL
        whole = await caller.answer(RESPONSES, {"input": "hi", **named})
        background = await caller.answer(RESPONSES, {"input": "hi", "background": True, **named})
        [first, *_, last] = await events_of(caller, {"input": "hi", **named})
        for response in (whole, background, first["response"], last["response"]):
            found = (response["temperature"], response["top_p"], response["parallel_tool_calls"])
            assert found == (0.25, 0.5, False)
        asked = await caller.answer(RESPONSES, {"input": "hi", "temperature": 1.5, "top_p": 0, "tools": [WEATHER]})
        assert (asked["temperature"], asked["top_p"], asked["parallel_tool_calls"]) == (1.5, 0, True)

    drive(tmp_path, scenario)


def test_unknown_fields_of_items_are_named(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        part = {"type": "output_text", "text": "Aye.", "annotations": [], "logprobs": [], "colour": "blue"}
        call = {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "c",
            "name": "f",
            "arguments": "{}",
            "status": "completed",
        }
        items = [
            {"role": "user", "content": "hi", "name": "Ada"},
            {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": [part]},
            call,
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_text", "text": "1", "mood": 1}],
            },
            {"role": "assistant", "content": "", "tool_calls": []},
        ]
        response = await caller.post(RESPONSES, {"input": items, "tone": "warm"})
        assert response.headers["x-motet-ignored"].split(",") == [
            "tone",
            "input[0].name",
            "input[1].content[0].colour",
            "input[3].output[0].mood",
            "input[4].tool_calls",
        ]
        made = await response.get_json()
        again = await caller.post(RESPONSES, {"input": [*items[1:2], *made["output"]]})
        assert again.headers["x-motet-ignored"] == "input[0].content[0].colour"
        listed = await (await caller.client.get(f"{RESPONSES}/{(await again.get_json())['id']}/input_items")).get_json()
        assert "x-motet-ignored" not in (await caller.post(RESPONSES, {"input": listed["data"]})).headers

    drive(tmp_path, scenario)


def test_what_frameworks_always_send_is_taken(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        include = ["web_search_call.action.sources", "file_search_call.results", "code_interpreter_call.outputs"]
        include += ["computer_call_output.output.image_url", "message.input_image.image_url"]
        await caller.answer(RESPONSES, {"input": "hi", "include": include})

    drive(tmp_path, scenario)


def test_input_is_counted_as_far_as_it_goes(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async def counted(body: dict[str, Any]) -> tuple[int, int]:
            response = await caller.client.post(f"{RESPONSES}/input_tokens", json=body)
            return response.status_code, (await response.get_json()).get("input_tokens", 0)

        assert await counted({}) == (400, 0)
        assert await counted({"model": None, "input": None, "instructions": "Be brief."}) == (200, 30)
        first = await caller.answer(RESPONSES, {"input": "hi"})
        status, count = await counted({"previous_response_id": first["id"]})
        assert status == 200
        assert count > first["usage"]["input_tokens"]
        assert await counted({"model": "shelf:none", "input": "hi"}) == (404, 0)

    drive(tmp_path, scenario)
