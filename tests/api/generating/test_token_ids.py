"""`return_token_ids` and `return_tokens_as_token_ids`: the ids that were sampled, streamed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive

from motet.api.generating import request_params as params

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
IDS = {"return_token_ids": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": MESSAGES}),
    (CHAT, {"messages": MESSAGES, "n": 3, "max_tokens": 4}),
    (CHAT, {"messages": MESSAGES, "stop": "lo", "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": MESSAGES, "logprobs": True, "return_tokens_as_token_ids": True}),
    (CHAT, {"messages": MESSAGES, "tools": [TOOL]}),
    (COMPLETIONS, {"prompt": ["ab", "cde"], "n": 2}),
    (COMPLETIONS, {"prompt": "ab", "stop": ["lo!"], "logprobs": 1}),
    (COMPLETIONS, {"prompt": "ab", "echo": True, "logprobs": 2, "return_tokens_as_token_ids": True}),
    (COMPLETIONS, {"prompt": "ab", "echo": True, "max_tokens": 0, "logprobs": 0}),
    (COMPLETIONS, {"prompt": "ab", "max_tokens": 3}),
]


async def streamed(caller: Caller, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a streamed answer, put together from its chunks as a client does."""
    response = await caller.post(path, {**body, "stream": True})
    assert response.status_code == 200, await response.get_data()
    choices: dict[int, dict[str, Any]] = {}
    for line in (await response.get_data()).decode().strip().split("\n\n"):
        if line == "data: [DONE]":
            continue
        chunk = json.loads(line.removeprefix("data: "))
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {"token_ids": [], "prompt_token_ids": [], "logprobs": []})
            choice["token_ids"] += piece.get("token_ids", [])
            choice["prompt_token_ids"] += piece.get("prompt_token_ids", []) + chunk.get("prompt_token_ids", [])
            choice["logprobs"] += logprobs(piece)
    return [choices[index] for index in sorted(choices)]


def logprobs(choice: dict[str, Any]) -> list[Any]:
    listed = choice["logprobs"] or {}
    if "content" in listed:
        return list(listed["content"])
    return list(
        zip(listed.get("tokens", []), listed.get("token_logprobs", []), listed.get("top_logprobs", []), strict=True)
    )


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_stream_has_the_ids_of_a_whole_answer(tmp_path: Path, at_once: int) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.at_once = at_once
        text = caller.api.services.tokenizer
        for path, body in CASES:
            said = f"Sure. {CALL}" if "tools" in body else "Hello!"
            caller.api.engine.script = lambda _, said=said: said
            caller.api.engine.submits.clear()
            answer = await caller.answer(path, {**body, **IDS})
            prompts = [list(submit.prompt) for submit in caller.api.engine.submits]
            sampled = [*text.encode(said, add_special_tokens=False), text.eos_token_ids[0]]
            if "stop" in body:
                sampled = sampled[: said.index("lo") + (3 if "lo!" in body["stop"] else 2)]
            sampled = sampled[: body.get("max_tokens")]
            for choice in answer["choices"]:
                assert choice["token_ids"] == sampled, (path, body)
            if path == CHAT:
                assert answer["prompt_token_ids"] == prompts[0]
            else:
                assert [choice["prompt_token_ids"] for choice in answer["choices"]] == prompts
            whole = [(choice["token_ids"], logprobs(choice)) for choice in answer["choices"]]
            pieces = await streamed(caller, path, {**body, **IDS})
            assert [(choice["token_ids"], choice["logprobs"]) for choice in pieces] == whole, (path, body)
            assert [choice["prompt_token_ids"] for choice in pieces] == prompts

    drive(tmp_path, scenario)


def test_logprobs_agree_with_the_ids_one_by_one(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        named = {**IDS, "return_tokens_as_token_ids": True}
        body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, **named}
        [choice] = (await caller.answer(CHAT, body))["choices"]
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == [
            f"token_id:{token}" for token in choice["token_ids"]
        ]
        first = choice["logprobs"]["content"][0]
        assert [entry["token"] for entry in first["top_logprobs"]] == [
            f"token_id:{choice['token_ids'][0] + n}" for n in (0, 1)
        ]
        assert bytes(first["bytes"]) == b"H"
        body = {"prompt": "ab", "logprobs": 1, "echo": True, **named}
        [choice] = (await caller.answer(COMPLETIONS, body))["choices"]
        ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
        assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids]
        assert choice["logprobs"]["text_offset"] == [*range(len("abHello!")), len("abHello!")]

    drive(tmp_path, scenario)


def test_nothing_changes_without_the_fields(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await caller.answer(CHAT, {"messages": MESSAGES, "logprobs": True, "return_token_ids": False})
        assert "prompt_token_ids" not in answer
        assert "token_ids" not in answer["choices"][0]
        assert [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]] == list("Hello!")
        answer = await caller.answer(COMPLETIONS, {"prompt": "ab"})
        assert {"token_ids", "prompt_token_ids"}.isdisjoint(answer["choices"][0])

    drive(tmp_path, scenario)


def test_the_number_of_ids_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "MAX_LOGPROBS", 1000)

    async def scenario(caller: Caller) -> None:
        body = {"prompt": [[1] * 400] * 2, "max_tokens": 50, **IDS}
        assert len((await caller.answer(COMPLETIONS, body))["choices"]) == 2
        for fields in ({"n": 2}, {"n": 2, "stream": True}, {"max_tokens": 500}):
            found = await caller.error(COMPLETIONS, {**body, **fields})
            assert found == (400, "invalid_value", "return_token_ids")
        chat = {"messages": MESSAGES, "max_tokens": 600, "n": 2}
        assert await caller.error(CHAT, {**chat, **IDS}) == (400, "invalid_value", "return_token_ids")
        assert (await caller.post(CHAT, {**chat, **IDS, "stream": True})).status_code == 200

    drive(tmp_path, scenario)
