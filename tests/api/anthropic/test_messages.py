"""Anthropic's Messages API on the scripted engine: the prompts that it makes, and its responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.anthropic_calls import CALL, DEFAULTS, PATH, WEATHER, events, message
from support.api_caller import MESSAGES, Caller, drive, prompt_of
from support.scripted_api import CONTEXT


def block(kind: str, **fields: Any) -> dict[str, Any]:
    """A content block."""
    return {"type": kind, **fields}


def conversation(*blocks: dict[str, Any], role: str = "user") -> list[dict[str, Any]]:
    """A question, and a message with these blocks."""
    return [{"role": "user", "content": "hi"}, {"role": role, "content": list(blocks)}]


def test_a_message_has_text_a_stop_reason_and_usage(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await message(caller, model="one")
        assert answer.pop("id").startswith("msg_")
        assert answer == {
            "type": "message",
            "role": "assistant",
            "model": "one",
            "content": [{"type": "text", "text": "Hello!", "citations": None}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": len(caller.api.engine.submits[-1].prompt),
                "output_tokens": 7,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        }
        assert caller.api.engine.submits[-1].adapter == "print-of-one"

    drive(tmp_path, scenario)


def test_a_stream_has_the_events_of_the_same_message(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: "Let me see.\n" + CALL + CALL
        whole = await message(caller, tools=[WEATHER])
        start, ping, *middle, delta, stop = await events(caller, tools=[WEATHER])
        assert (start["type"], ping, stop) == ("message_start", {"type": "ping"}, {"type": "message_stop"})
        assert (start["message"]["content"], start["message"]["stop_reason"]) == ([], None)
        assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
        assert delta["usage"] == whole["usage"]
        kinds = [block["type"] for block in whole["content"]]
        assert kinds == ["text", "tool_use", "tool_use"]
        for index, expected in enumerate(whole["content"]):
            begun, *pieces, ended = [event for event in middle if event["index"] == index]
            assert (begun["type"], ended["type"]) == ("content_block_start", "content_block_stop")
            assert begun["content_block"]["type"] == expected["type"]
            deltas = [piece["delta"] for piece in pieces]
            if expected["type"] == "text":
                assert {d["type"] for d in deltas} == {"text_delta"}
                assert "".join(d["text"] for d in deltas) == expected["text"] == "Let me see."
            else:
                assert {d["type"] for d in deltas} == {"input_json_delta"}
                assert "".join(d["partial_json"] for d in deltas) == '{"city": "Oslo"}'
                assert (expected["name"], expected["input"]) == ("weather", {"city": "Oslo"})
                assert begun["content_block"]["id"].startswith("toolu_")

    drive(tmp_path, scenario)


ENDS: list[tuple[dict[str, Any], str, tuple[Any, ...]]] = [
    ({}, "Hello!", ("end_turn", None, "Hello!")),
    ({"max_tokens": 3}, "Hello!", ("max_tokens", None, "Hel")),
    ({"stop_sequences": ["lo", "x"]}, "Hello!", ("stop_sequence", "lo", "Hel")),
    ({"max_tokens": 10 * CONTEXT}, "Hello!", ("end_turn", None, "Hello!")),
    ({"stop_sequences": ["x"]}, "", ("end_turn", None, None)),
]
"""Requests, what the model says, and the stop reason, the stop sequence and the text of the answer."""


def test_why_a_message_ended(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for sent, script, expected in ENDS:
            caller.api.engine.script = lambda request, script=script: script  # type: ignore[misc]
            answer = await message(caller, **sent)
            text = answer["content"][0]["text"] if answer["content"] else None
            assert (answer["stop_reason"], answer["stop_sequence"], text) == expected
            delta = (await events(caller, **sent))[-2]["delta"]
            assert (delta["stop_reason"], delta["stop_sequence"]) == expected[:2]

    drive(tmp_path, scenario)


def test_max_tokens_beyond_the_context_ends_where_the_context_does(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: "x" * 2 * CONTEXT
        answer = await message(caller, max_tokens=32_000)
        assert answer["stop_reason"] == "model_context_window_exceeded"
        assert sum(answer["usage"].values()) == CONTEXT

    drive(tmp_path, scenario)


def test_a_call_that_was_cut_short_has_an_empty_input(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: CALL
        answer = await message(caller, tools=[WEATHER], max_tokens=len(CALL) - 20)
        [call] = answer["content"]
        assert (call["type"], call["input"], answer["stop_reason"]) == ("tool_use", {}, "max_tokens")

    drive(tmp_path, scenario)


READ: list[tuple[dict[str, Any], str]] = [
    ({"system": "Be brief."}, "system\nBe brief.|user\nhi|"),
    ({"system": [block("text", text="One."), block("text", text="Two.")]}, "system\nOne.\nTwo.|user\nhi|"),
    ({"messages": [*MESSAGES, *MESSAGES]}, "user\nhi\nhi|"),
    (
        {"messages": conversation(block("thinking", thinking="Hm", signature="s"), block("text", text="Yes"))},
        "user\nhi\nYes|",
    ),
    (
        {
            "messages": [
                *conversation(block("redacted_thinking", data="x"), block("text", text="Yes"), role="assistant"),
                *MESSAGES,
            ]
        },
        "user\nhi|assistant\nYes|user\nhi|",
    ),
    ({"messages": [*MESSAGES, {"role": "system", "content": "Now rhyme."}]}, "user\nhi|system\nNow rhyme.|"),
]
"""Requests, and their prompts."""


def test_what_the_model_reads(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for sent, prompt in READ:
            await message(caller, **sent)
            expected = "".join(f"<|im_start|>{part}<|im_end|>\n" for part in prompt.split("|")[:-1])
            assert prompt_of(caller) == expected + "<|im_start|>assistant\n"

    drive(tmp_path, scenario)


def test_an_assistants_last_message_is_continued(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await message(caller, messages=[*MESSAGES, {"role": "assistant", "content": "Oh,"}])
        assert prompt_of(caller).endswith("<|im_start|>assistant\nOh,")
        assert answer["content"][0]["text"] == "Hello!"

    drive(tmp_path, scenario)


RESULTS: list[tuple[dict[str, Any], str]] = [
    ({"content": "rain"}, "rain"),
    ({"content": [block("text", text="rain"), block("text", text="wind")]}, "rain\nwind"),
    ({"content": "no such city", "is_error": True}, "Error: no such city"),
    ({}, ""),
]
"""Tool results, and what the model reads of them."""


def test_calls_and_their_results_go_back(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for result, read in RESULTS:
            call = block("tool_use", id="toolu_1", name="weather", input={"city": "Oslo"})
            answered = block("tool_result", tool_use_id="toolu_1", **result)
            history = [
                *conversation(block("text", text="Let me see."), call, role="assistant"),
                {"role": "user", "content": [block("text", text="And?"), answered]},
            ]
            await message(caller, messages=history, tools=[WEATHER])
            prompt = prompt_of(caller)
            assert f"<|im_start|>assistant\nLet me see.\n{CALL}<|im_end|>" in prompt
            assert prompt.index("tool_response") < prompt.index("And?")
            assert f"<tool_response>\n{read}\n</tool_response>" in prompt

    drive(tmp_path, scenario)


CHOICES: list[tuple[dict[str, Any], bool, bool]] = [
    ({"type": "auto"}, False, True),
    ({"type": "any"}, True, True),
    ({"type": "tool", "name": "weather"}, True, True),
    ({"type": "any", "disable_parallel_tool_use": True}, True, True),
    ({"type": "none"}, False, False),
]
"""Values of tool_choice, whether calls are forced, and whether the model reads of the tools."""


def test_tool_choice(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for choice, forced, offered in CHOICES:
            caller.api.engine.script = lambda request: CALL + CALL.replace("Oslo", "Bergen")
            answer = await message(caller, tools=[WEATHER], tool_choice=choice)
            assert (caller.api.engine.submits[-1].grammar is not None) == forced
            assert ('"name": "weather"' in prompt_of(caller)) == offered
            calls = [part for part in answer["content"] if part["type"] == "tool_use"]
            single = choice.get("disable_parallel_tool_use") or choice["type"] == "tool"
            assert len(calls) == (0 if not offered else 1 if single else 2)

    drive(tmp_path, scenario)


def test_what_has_no_effect_is_named_in_the_header(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        search = {"type": "web_search_20250305", "name": "web_search"}
        sent = {
            "tools": [search, {**WEATHER, "cache_control": {"type": "ephemeral"}, "defer_loading": True}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"effort": "high"},
            "context_management": {"edits": []},
            "metadata": {"user_id": "u"},
            "messages": conversation(
                block("server_tool_use", id="s", name="web_search", input={}),
                block("text", text="Yes", cache_control={"type": "ephemeral"}, mood="good"),
            ),
        }
        response = await caller.post(PATH, {**DEFAULTS, **sent}, **{"anthropic-beta": "x", "anthropic-version": "y"})
        assert response.status_code == 200, await response.get_data()
        ignored = response.headers["x-motet-ignored"].split(",")
        assert sorted(ignored) == [
            "context_management",
            "messages[1].content[0].server_tool_use",
            "messages[1].content[1].mood",
            "output_config.effort",
            "thinking",
            "tools[0].web_search_20250305",
            "tools[1].defer_loading",
        ]
        assert "web_search" not in prompt_of(caller)
        assert (await caller.post(PATH, {**DEFAULTS, "thinking": {"type": "disabled"}})).headers.get(
            "x-motet-ignored"
        ) is None

    drive(tmp_path, scenario)


def test_an_output_format_is_followed(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}

    async def scenario(caller: Caller) -> None:
        for sent in ({"output_config": {"format": block("json_schema", schema=schema)}}, {"output_format": None}):
            await message(caller, **sent)
            grammar = caller.api.engine.submits[-1].grammar
            assert (grammar is not None) == ("output_config" in sent)

    drive(tmp_path, scenario)


def test_tokens_are_counted_as_the_message_would_use_them(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        asked = {"system": "Be brief.", "messages": MESSAGES, "tools": [WEATHER]}
        counted = await caller.answer(f"{PATH}/count_tokens", asked)
        assert counted == {"input_tokens": (await message(caller, **asked))["usage"]["input_tokens"]}
        long = await caller.answer(f"{PATH}/count_tokens", {"messages": conversation(block("text", text="x" * 9000))})
        assert long["input_tokens"] > 9000 > CONTEXT

    drive(tmp_path, scenario)


def test_models_are_listed_in_anthropics_shape_for_its_clients(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async def page(query: str = "") -> Any:
            response = await caller.client.get(f"/v1/models{query}", headers={"anthropic-version": "2023-06-01"})
            assert response.status_code == 200
            return await response.get_json()

        everything = await page()
        ids = [model["id"] for model in everything["data"]]
        assert ids == ["tiny", "shelf:one", "shelf:two"]
        assert (everything["first_id"], everything["last_id"], everything["has_more"]) == ("tiny", "shelf:two", False)
        assert {model["type"] for model in everything["data"]} == {"model"}
        assert [model["display_name"] for model in everything["data"]] == ["tiny", "one", "shelf:two"]
        first = await page("?limit=1")
        assert ([m["id"] for m in first["data"]], first["has_more"]) == (["tiny"], True)
        rest = await page("?limit=5&after_id=tiny")
        assert ([m["id"] for m in rest["data"]], rest["has_more"]) == (["shelf:one", "shelf:two"], False)
        before = await page("?limit=1&before_id=shelf:two")
        assert ([m["id"] for m in before["data"]], before["has_more"]) == (["shelf:one"], True)
        assert (await page("/shelf:one"))["display_name"] == "one"
        assert (await (await caller.client.get("/v1/models")).get_json())["object"] == "list"

    drive(tmp_path, scenario)
