"""Failures of Anthropic's routes: statuses, types and messages, before a stream and in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.anthropic_calls import CALL, DEFAULTS, PATH, WEATHER, events, failure, failure_of
from support.api_caller import MESSAGES, Caller, drive

from motet.api.http.api_keys import key_line
from motet.core.errors import Conflict, Overloaded, Unavailable
from motet.core.settings import Settings

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def user(*blocks: Any) -> dict[str, Any]:
    """A request with one message of these blocks."""
    return {"messages": [{"role": "user", "content": list(blocks)}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens: "),
    ({"max_tokens": None}, "max_tokens: "),
    ({"messages": []}, "messages: "),
    ({"messages": [{"role": "bot", "content": "hi"}]}, "messages[0].role: "),
    (user(IMAGE), "messages[0].content[0].type: blocks of type 'image' are not supported here; send text"),
    (user({"text": "hi"}), "messages[0].content[0].type is missing"),
    (user({"type": {"text": 1}}), "messages[0].content[0].type: blocks of type "),
    (user({"type": "text"}), "messages[0].content[0].text is missing"),
    (user({"type": "text", "text": 1}), "messages[0].content[0].text: "),
    (
        user({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}),
        "messages[0].content[0].content[0].type: blocks of type 'image'",
    ),
    (
        {"messages": [*MESSAGES, {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
        "messages[1].content[0].type: tool_result blocks belong in user messages",
    ),
    ({"tools": [{"name": "weather"}]}, "tools[0].input_schema is missing"),
    ({"tools": [{**WEATHER, "name": "no spaces"}]}, "tools[0].name: "),
    ({"tools": [{"type": "function", **WEATHER}]}, "tools[0].type: 'function' is not supported"),
    (
        {
            "tools": [
                SEARCH,
                {**WEATHER, "input_schema": {"type": "object", "properties": {"x": {"pattern": "("}}}},
            ],
            "tool_choice": {"type": "any"},
        },
        "tools[1].input_schema",
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice names 'x'"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "tools[9].function.parameters"}},
        "tool_choice names 'tools[9].function.parameters'",
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
    (
        {"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
        "tool_choice names 'web_search', which Anthropic runs",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tool_choice requires a call, but all tools are run by"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format must be"),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": ""}]}, "messages: the last message has no text"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "prompt is too long: "),
    ({"temperature": 3}, "temperature: "),
]
"""Requests, and the beginnings of their errors."""


def test_a_wrong_request_is_named(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for sent, message in WRONG:
            for stream in (False, True):
                status, kind, reported = await failure(caller, **sent, stream=stream)
                assert (status, kind) == (400, "invalid_request_error")
                assert reported.startswith(message), reported

    drive(tmp_path, scenario)


def test_too_many_blocks(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        _, _, reported = await failure(caller, **user(*[{"type": "text", "text": "x"}] * 4097))
        assert reported == "the messages have more than 4096 content blocks"

    drive(tmp_path, scenario)


FAILURES: list[tuple[Exception, int, str]] = [
    (Overloaded("too much waits"), 429, "rate_limit_error"),
    (Unavailable("the engine is away"), 503, "overloaded_error"),
    (Conflict("the request was cancelled"), 409, "invalid_request_error"),
    (ValueError("a fault"), 500, "api_error"),
]


def test_the_engines_failures(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for raised, status, kind in FAILURES:
            caller.api.engine.failure = raised
            for stream in (False, True):
                caller.api.engine.fail_after = 0
                response = await caller.post(PATH, {**DEFAULTS, "stream": stream})
                assert (await failure_of(response))[:2] == (status, kind)
                assert ("retry-after" in response.headers) == (status in (429, 503))
            caller.api.engine.fail_after = 2
            *_, text, last = await events(caller)
            assert text["delta"]["text"] == "e"
            assert (last["type"], last["error"]["type"]) == ("error", kind)
            assert last["request_id"].startswith("req_")
            assert "a fault" not in last["error"]["message"]

    drive(tmp_path, scenario)


def test_a_call_that_fails_half_way_is_no_call(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script, caller.api.engine.fail_after = lambda request: CALL, len(CALL) - 20
        found = await events(caller, tools=[WEATHER])
        assert found[-1]["type"] == "error"
        assert "content_block_stop" not in {event["type"] for event in found}

    drive(tmp_path, scenario)


def test_models_paths_and_methods_fail_in_the_same_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        version = {"anthropic-version": "2023-06-01"}
        assert (await failure(caller, model="no/such"))[:2] == (404, "not_found_error")
        assert (await failure(caller, model="shelf:secret"))[:2] == (403, "permission_error")
        assert (await failure(caller, model="shelf:broken"))[:2] == (422, "invalid_request_error")
        assert (await failure(caller, path=f"{PATH}/nothing"))[:2] == (404, "not_found_error")
        assert (await failure_of(await caller.client.get(PATH)))[:2] == (405, "invalid_request_error")
        wrong = await caller.client.get("/v1/models?limit=0", headers=version)
        assert await failure_of(wrong) == (400, "invalid_request_error", "limit must be a number from 1 to 1000")
        lost = await caller.client.get("/v1/models?after_id=x", headers=version)
        assert (await failure_of(lost))[2] == "after_id: no model in the list has this id"
        doubled = await caller.client.post("/v1/v1/messages", json=DEFAULTS, headers=version)
        assert (
            "did you mean /v1/messages? Anthropic's clients need a base URL without /v1"
            in (await failure_of(doubled))[2]
        )
        text = await caller.client.post(PATH, data=b"hi", headers={"content-type": "text/plain"})
        assert (await failure_of(text))[:2] == (415, "invalid_request_error")

    drive(tmp_path, scenario)


def test_the_servers_key_is_accepted_where_anthropics_clients_send_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-alice", False))

    async def scenario(caller: Caller) -> None:
        assert (await failure(caller))[:2] == (401, "authentication_error")
        wrong = await caller.post(PATH, DEFAULTS, **{"x-api-key": "sk-bob"})
        assert (await failure_of(wrong))[:2] == (401, "authentication_error")
        for header in ({"x-api-key": "sk-alice"}, {"authorization": "Bearer sk-alice"}):
            response = await caller.post(PATH, DEFAULTS, **header)
            assert response.status_code == 200
            assert response.headers["request-id"] == response.headers["x-request-id"]

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


def test_the_body_limit_and_the_drain_hold(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        large = await failure(caller, system="x" * 2000)
        assert large[:2] == (413, "request_too_large")
        caller.api.services.drain.refuse_new_requests()
        assert (await failure(caller))[:2] == (503, "overloaded_error")

    drive(tmp_path, scenario, settings=Settings(max_body="1KiB"))
