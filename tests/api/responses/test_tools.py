"""Tools of responses: namespaces, custom and hosted tools, their calls, and all of them in the history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import Caller, drive, prompt_of
from support.responses_calls import RESPONSES, WEATHER, events_of

SEARCH = {"type": "web_search", "external_web_access": False}
FORECAST: dict[str, Any] = {**WEATHER, "name": "forecast"}
TOWN = {"type": "namespace", "name": "mcp__town", "description": "Town", "tools": [WEATHER, FORECAST, SEARCH]}
SQL = 'start: "SELECT " /[a-z]+/ ";"'
CUSTOM = {"type": "custom", "name": "sql", "format": {"type": "grammar", "syntax": "lark", "definition": SQL}}
CITY = '{"city": "Oslo"}'


def call(name: str, arguments: str = CITY) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def without_id(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id", "status")}


def test_a_call_in_a_namespace_comes_back_with_both_names(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: call("mcp__town__weather")
        body = {"input": "hi", "tools": [WEATHER, TOWN]}
        expected = {"type": "function_call", "namespace": "mcp__town", "name": "weather", "arguments": CITY}
        whole = await caller.answer(RESPONSES, body)
        assert [without_id(item) for item in whole["output"]] == [expected]
        assert '"name": "mcp__town__forecast"' in prompt_of(caller)
        events = await events_of(caller, body)
        added = next(event["item"] for event in events if event["type"] == "response.output_item.added")
        assert (added["namespace"], added["name"]) == ("mcp__town", "weather")
        assert [without_id(item) for item in events[-1]["response"]["output"]] == [expected]
        assert [tool["type"] for tool in whole["tools"]] == ["function", "namespace"]
        stored = await (await caller.client.get(f"{RESPONSES}/{whole['id']}")).get_json()
        assert stored["output"] == whole["output"]
        [made] = whole["output"]
        result = {"type": "function_call_output", "call_id": made["call_id"], "output": "wet"}
        for history in ({"input": [result], "previous_response_id": whole["id"]}, {"input": [made, result]}):
            await caller.answer(RESPONSES, {**history, "tools": [TOWN]})
            assert call("mcp__town__weather") in prompt_of(caller)
            assert "<tool_response>\nwet" in prompt_of(caller)

    drive(tmp_path, scenario)


def test_flat_names_are_valid_and_unambiguous(tmp_path: Path) -> None:
    def space(name: str, *tools: str) -> dict[str, Any]:
        return {"type": "namespace", "name": name, "tools": [{**WEATHER, "name": tool} for tool in tools]}

    spaces = [space("a", "b__c"), space("a__b", "c"), space("my server/é", "f"), space("x" * 60, "long", "longer")]

    async def scenario(caller: Caller) -> None:
        tools = [{**WEATHER, "name": "a__b__c"}, *spaces]
        for space in spaces:
            for tool in space["tools"]:
                choice = {"type": "function", "name": tool["name"], "namespace": space["name"]}
                seen: list[str] = []

                def script(request: Any, seen: list[str] = seen) -> str:
                    seen.append(request.grammar.text.split('{\\"name\\": \\"')[1].split("\\")[0])
                    return call(seen[0])

                caller.api.engine.script = script
                [made] = (await caller.answer(RESPONSES, {"input": "hi", "tools": tools, "tool_choice": choice}))[
                    "output"
                ]
                assert (made["namespace"], made["name"]) == (space["name"], tool["name"])
                assert len(seen[0]) <= 64
                assert seen[0] != "a__b__c"

    drive(tmp_path, scenario)


def test_a_custom_call_comes_back_with_its_input(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda _: '<tool_call>\n{"name": "sql"}\nSELECT ships;'
        events = await events_of(caller, {"input": "hi", "tools": [CUSTOM]})
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert list(dict.fromkeys(kinds)) == [
            "created",
            "in_progress",
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
            "completed",
        ]
        assert "".join(e["delta"] for e in events if e["type"].endswith("input.delta")) == "SELECT ships;"
        assert next(e["input"] for e in events if e["type"].endswith("input.done")) == "SELECT ships;"
        [made] = events[-1]["response"]["output"]
        assert without_id(made) == {"type": "custom_tool_call", "name": "sql", "input": "SELECT ships;"}
        result = {"type": "custom_tool_call_output", "call_id": made["call_id"], "output": "3 ships"}
        before = events[-1]["response"]["id"]
        for history in ({"input": [result], "previous_response_id": before}, {"input": [made, result]}):
            await caller.answer(RESPONSES, {**history, "tools": [CUSTOM]})
            assert call("sql", json.dumps({"input": "SELECT ships;"})) in prompt_of(caller)
            assert "<tool_response>\n3 ships" in prompt_of(caller)

    drive(tmp_path, scenario)


def test_hosted_tools_are_left_out_and_named(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        kinds = (
            "web_search_preview_2025_03_11",
            "file_search",
            "code_interpreter",
            "mcp",
            "local_shell",
            "tool_search",
        )
        hosted = [SEARCH, *({"type": kind, "container": {"type": "auto"}} for kind in kinds)]
        response = await caller.post(RESPONSES, {"input": "hi", "tools": [TOWN, *hosted]})
        assert response.headers["x-motet-ignored"].split(",") == [
            "tools[0].tools[2].web_search",
            "tools[1].web_search",
            *(f"tools[{n}].{kind}" for n, kind in enumerate(kinds, start=2)),
        ]
        assert [tool["type"] for tool in (await response.get_json())["tools"]] == ["namespace"]
        alone = await caller.post(RESPONSES, {"input": "hi", "tools": [SEARCH], "tool_choice": "auto"})
        assert (alone.status_code, alone.headers["x-motet-ignored"]) == (200, "tools[0].web_search")

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{**TOWN, "tools": [{"type": "fortune"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [{**TOWN, "tools": [{**WEATHER, "name": "a b"}]}]}, "tools[0].tools[0].name"),
        ({"tools": [TOWN, TOWN]}, "tools"),
        ({"tools": [{**TOWN, "tools": [{**WEATHER, "name": f"f{n}"} for n in range(128)]}] * 5}, "tools"),
        (
            {
                "tools": [
                    SEARCH,
                    {**TOWN, "tools": [SEARCH, {**CUSTOM, "format": {**CUSTOM["format"], "definition": "x"}}]},
                ]
            },  # type: ignore[dict-item]
            "tools[1].tools[1].format.definition",
        ),
        (
            {"tools": [SEARCH, {**WEATHER, "parameters": {"$ref": "#/nowhere"}}], "tool_choice": "required"},
            "tools[1].parameters",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather", "namespace": "x"}}, "tool_choice"),
    ],
)
def test_mistakes_are_named_where_they_are(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async def scenario(caller: Caller) -> None:
        status, _, found = await caller.error(RESPONSES, {"input": "hi", **fields})
        assert (status, found) == (400, param)

    drive(tmp_path, scenario)


def test_items_of_hosted_tools_are_taken_back(tmp_path: Path) -> None:
    action = {"type": "exec", "command": ["ls"], "env": {}}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "local_shell_call", "id": "l", "call_id": "c", "action": action, "status": "completed"},
        {"type": "local_shell_call_output", "call_id": "c", "output": "a.txt"},
        {"type": "mcp_call", "id": "m", "server_label": "s", "name": "f", "arguments": "{}", "output": "from mcp"},
        {"type": "code_interpreter_call", "id": "i", "code": "1+1", "outputs": [{"type": "logs", "logs": "two"}]},
        {"type": "file_search_call", "id": "f", "queries": ["q"], "results": [{"filename": "b", "text": "found"}]},
        {"type": "file_search_call", "id": "g", "queries": ["q"], "results": None},
        {"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "q"}},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "image_generation_call", "id": "g", "result": "A" * 50},
    ]

    async def scenario(caller: Caller) -> None:
        response = await caller.post(RESPONSES, {"input": items})
        assert response.status_code == 200
        assert response.headers["x-motet-ignored"].split(",") == [
            "input[7].file_search_call",
            "input[8].web_search_call",
            "input[9].compaction",
            "input[10].image_generation_call",
        ]
        made = await response.get_json()
        first = prompt_of(caller)
        for text in ('"command": ["ls"]', "a.txt", '"name": "f"', "from mcp", '"code": "1+1"', "two", "b\nfound"):
            assert text in first
        await caller.answer(RESPONSES, {"input": "More", "previous_response_id": made["id"]})
        assert prompt_of(caller).startswith(first)
        page = await (await caller.client.get(f"{RESPONSES}/{made['id']}/input_items?order=asc")).get_json()
        assert [item["type"] for item in page["data"][1:]] == [item["type"] for item in items[1:]]
        assert "result" not in page["data"][10]

    drive(tmp_path, scenario)


@pytest.mark.parametrize("kind", ["function_call", "custom_tool_call"])
def test_an_image_in_an_output_is_replaced_and_named(tmp_path: Path, kind: str) -> None:
    async def scenario(caller: Caller) -> None:
        given = {"input": "x"} if kind == "custom_tool_call" else {"arguments": "{}"}
        image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
        output = [{"type": "input_text", "text": "Here: "}, image]
        items = [
            {"type": kind, "call_id": "c", "name": "view_image", **given},
            {"type": f"{kind}_output", "call_id": "c", "output": output},
        ]
        response = await caller.post(RESPONSES, {"input": items})
        assert response.headers["x-motet-ignored"] == "input[1].output[1].input_image"
        assert "Here: [image omitted: this server reads text only]" in prompt_of(caller)
        made = await response.get_json()
        await caller.answer(RESPONSES, {"input": "And?", "previous_response_id": made["id"]})
        assert "Here: [image omitted" in prompt_of(caller)
        assert "AAAA" not in prompt_of(caller)

    drive(tmp_path, scenario)
