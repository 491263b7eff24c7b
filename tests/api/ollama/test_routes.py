"""Ollama's routes on the scripted engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.anthropic_calls import CALL
from support.api_caller import MESSAGES, Caller, drive, prompt_of
from support.scripted_api import CONTEXT

from motet.core.errors import Overloaded

CHAT, GENERATE = "/api/chat", "/api/generate"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
COUNTS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}


async def whole(caller: Caller, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    answer: dict[str, Any] = await caller.answer(path, {"stream": False, **body})
    return answer


async def lines(caller: Caller, path: str, **body: Any) -> list[dict[str, Any]]:
    """The lines of a stream."""
    response = await caller.post(path, body)
    assert response.content_type == "application/x-ndjson", await response.get_data()
    return [json.loads(line) for line in (await response.get_data()).splitlines()]


async def failure(caller: Caller, path: str, **body: Any) -> tuple[int, str]:
    """Status and message of a request that fails."""
    response = await caller.post(path, body)
    answer = json.loads(await response.get_data())
    assert set(answer) == {"error"}
    return response.status_code, answer["error"]


def test_discovery(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        version = (await (await caller.client.get("/api/version")).get_json())["version"]
        assert tuple(map(int, version.split("."))) >= (0, 6, 4)  # what editors require
        models = (await (await caller.client.get("/api/tags")).get_json())["models"]
        assert [model["name"] for model in models] == ["tiny", "shelf:one", "shelf:two"]
        assert len({model["digest"] for model in models}) == 3
        assert [model["details"]["parent_model"] for model in models] == ["", "tiny", "tiny"]
        for name in ("shelf:one", "one", "one:latest"):
            shown = await caller.answer("/api/show", {"model": name})
            family = shown["model_info"]["general.architecture"]
            assert shown["model_info"][f"{family}.context_length"] == CONTEXT
            assert shown["model_info"]["general.basename"] == "one"
            assert shown["capabilities"] == ["completion", "tools"]
        assert (await caller.answer("/api/show", {"name": "tiny", "model": None}))["details"]["parent_model"] == ""
        assert await failure(caller, "/api/show", model="shelf:nobody") == (
            404,
            "The model 'shelf:nobody' does not exist",
        )

    drive(tmp_path, scenario)


def test_chat_streams_lines_by_default(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await whole(caller, CHAT, model="one:latest", messages=MESSAGES)
        assert answer["message"] == {"role": "assistant", "content": "Hello!"}
        assert (answer["model"], answer["done"], answer["done_reason"]) == ("one:latest", True, "stop")
        assert (answer["eval_count"], answer["prompt_eval_count"]) == (7, len(caller.api.engine.submits[-1].prompt))
        assert all(answer[name] >= 0 for name in COUNTS)
        assert caller.api.engine.submits[-1].adapter == "print-of-one"
        *pieces, last = await lines(caller, CHAT, messages=MESSAGES)
        assert "".join(piece["message"]["content"] for piece in pieces) == "Hello!"
        assert not any(piece["done"] or COUNTS & set(piece) for piece in pieces)
        assert (last["done"], last["message"]["content"], last["eval_count"]) == (True, "", 7)

    drive(tmp_path, scenario)


def test_calls_come_whole_and_go_back(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: "Well.\n" + CALL + CALL
        answer = await whole(caller, CHAT, messages=MESSAGES, tools=[TOOL])
        calls = answer["message"]["tool_calls"]
        assert [call["function"] for call in calls] == [{"name": "weather", "arguments": {"city": "Oslo"}}] * 2
        assert answer["message"]["content"] == "Well."
        found = await lines(caller, CHAT, messages=MESSAGES, tools=[TOOL])
        streamed = [call for line in found for call in line["message"].get("tool_calls", ())]
        assert [call["function"] for call in streamed] == [call["function"] for call in calls]
        earlier = {"role": "assistant", "content": "", "tool_calls": [{"function": calls[0]["function"]}]}
        result = {"role": "tool", "tool_name": "weather", "content": "rain"}
        await whole(caller, CHAT, messages=[*MESSAGES, earlier, result], tools=[TOOL])
        assert f"{CALL}<|im_end|>" in prompt_of(caller)
        assert "<tool_response>\nrain\n</tool_response>" in prompt_of(caller)

    drive(tmp_path, scenario)


def test_generate(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await whole(caller, GENERATE, prompt="hi", system="Be brief.")
        assert (answer["response"], answer["done"], answer["done_reason"]) == ("Hello!", True, "stop")
        assert "system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>" in prompt_of(caller)
        assert "".join(line["response"] for line in await lines(caller, GENERATE, prompt="hi")) == "Hello!"
        await whole(caller, GENERATE, prompt="Once", raw=True)
        assert prompt_of(caller) == "Once"
        assert caller.api.engine.submits[-1].params.max_tokens == CONTEXT - 4
        loaded = await whole(caller, GENERATE, model="one")
        assert (loaded["response"], loaded["done_reason"]) == ("", "load")
        assert [adapter.name for adapter in caller.api.engine.registered] == ["shelf:one"]
        assert (await whole(caller, GENERATE, keep_alive=0))["done_reason"] == "unload"
        assert (await whole(caller, CHAT, messages=[]))["done_reason"] == "load"

    drive(tmp_path, scenario)


def test_options(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        options = {
            "num_predict": 3,
            "temperature": 0.5,
            "top_k": 5,
            "top_p": 0.9,
            "min_p": 0.1,
            "seed": 7,
            "repeat_penalty": 1.2,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
        }
        for path, sent in ((CHAT, {"messages": MESSAGES}), (GENERATE, {"prompt": "hi"}), (GENERATE, {"prompt": "hi"})):
            answer = await whole(caller, path, **sent, options=options)
            assert (answer["done_reason"], answer["eval_count"]) == ("length", 3)
            params = caller.api.engine.submits[-1].params
            used = (params.temperature, params.top_k, params.top_p, params.min_p, params.seed)
            assert used == (0.5, 5, 0.9, 0.1, 7)
            penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
            assert penalties == (1.2, 0.5, 0.25)
        stopped = await whole(caller, CHAT, messages=MESSAGES, options={"stop": ["lo"], "num_predict": -1, "seed": -1})
        assert (stopped["message"]["content"], stopped["done_reason"]) == ("Hel", "stop")
        assert (await whole(caller, CHAT, messages=MESSAGES, options={"num_predict": 10**6}))["done_reason"] == "stop"
        for form in ("json", {"type": "object"}):
            await whole(caller, CHAT, messages=MESSAGES, format=form)
            assert caller.api.engine.submits[-1].grammar is not None
        response = await caller.post(
            CHAT, {"messages": MESSAGES, "options": {"num_ctx": 4096, "mirostat": 1}, "think": True, "keep_alive": "5m"}
        )
        ignored = response.headers["x-motet-ignored"].split(",")
        assert sorted(ignored) == ["options.mirostat", "options.num_ctx", "think"]

    drive(tmp_path, scenario)


def test_failures_have_ollamas_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        picture = {"role": "user", "content": "hi", "images": ["aGk="]}
        assert (await failure(caller, CHAT, messages=[picture]))[1].startswith("messages[0].images must be empty")
        assert (await failure(caller, GENERATE, prompt="hi", context=[1]))[1].startswith("context is not supported")
        assert (await failure(caller, GENERATE, prompt="hi", template="x"))[1].startswith("template is not supported")
        assert (await failure(caller, CHAT, messages=MESSAGES, options={"temperature": 9}))[0] == 400
        assert (await failure(caller, CHAT, model="shelf:broken", messages=MESSAGES))[0] == 422
        assert (await failure(caller, "/api/nothing"))[0] == 404
        assert (await failure(caller, CHAT, messages=[{"role": "user", "content": "x" * 5000}]))[0] == 400
        caller.api.engine.failure, caller.api.engine.fail_after = Overloaded("too much waits"), 2
        for path, sent in ((CHAT, {"messages": MESSAGES}), (GENERATE, {"prompt": "hi"})):
            *_, last = await lines(caller, path, **sent)
            assert last == {"error": "too much waits"}
        caller.api.engine.fail_after = 0
        assert await failure(caller, CHAT, messages=MESSAGES) == (429, "too much waits")

    drive(tmp_path, scenario)
