"""POST /tokenize, in both shapes, and POST /detokenize; the tokenizer has one token per byte."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive
from support.lorax_calls import post
from support.scripted_api import CONTEXT

from motet.api.generating.prompts import LONG_TEXT

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def test_tokens_both_ways(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        _, spans, _ = await post(caller, "/tokenize", {"inputs": "hé"})
        assert [(span["text"], span["start"], span["stop"]) for span in spans] == [
            ("h", 0, 1),
            ("é", 1, 2),
            ("é", 1, 2),
        ]
        _, listed, _ = await post(caller, "/tokenize", {"model": "", "prompt": "hé", "return_token_strs": True})
        assert listed["tokens"] == [span["id"] for span in spans]
        assert (listed["count"], listed["max_model_len"]) == (3, CONTEXT)
        _, chat, _ = await post(caller, "/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
        _, back, _ = await post(caller, "/detokenize", {"model": "", "tokens": chat["tokens"]})
        assert back == {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"}
        assert (await post(caller, "/tokenize", {"inputs": 5}))[0] == 422
        assert (await post(caller, "/tokenize", {"model": ""}))[1]["error"]["param"] == "prompt"
        assert (await post(caller, "/detokenize", {"tokens": [10**6]}))[1]["error"]["param"] == "tokens[0]"

    drive(tmp_path, scenario)


def test_long_texts_are_not_tokenised_for_everybody_to_wait(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        long = "a " * 300_000
        assert (await post(caller, "/tokenize", {"inputs": long}))[0] == 422
        assert (await post(caller, "/tokenize", {"prompt": long}))[1]["error"]["param"] == "prompt"
        assert (await post(caller, "/detokenize", {"tokens": [1] * 200_000}))[0] == 400

    drive(tmp_path, scenario)


async def detokenized(caller: Caller, body: dict[str, Any]) -> str:
    """The prompt that /tokenize made the tokens of."""
    _, listed, _ = await post(caller, "/tokenize", {**body, "return_token_strs": True})
    return "".join(listed["token_strs"])


def test_a_conversation_is_counted_as_chat_would_send_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for more in ({}, {"tools": [TOOL]}, {"truncate_prompt_tokens": 5}, {"add_generation_prompt": False}):
            body = {"model": "", "messages": MESSAGES, **more}
            _, listed, _ = await post(caller, "/tokenize", body)
            await caller.answer(CHAT, body)
            assert tuple(listed["tokens"]) == caller.api.engine.submits[-1].prompt
        assert "get_weather" in await detokenized(caller, {"messages": MESSAGES, "tools": [TOOL]})
        prefill = [*MESSAGES, {"role": "assistant", "content": "Ahoy"}]
        assert (await detokenized(caller, {"messages": prefill, "continue_final_message": True})).endswith("\nAhoy")

    drive(tmp_path, scenario)


def test_texts_are_cut_from_the_left(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert await detokenized(caller, {"prompt": "abcdef", "truncate_prompt_tokens": 3}) == "def"
        _, spans, _ = await post(caller, "/tokenize", {"inputs": "abcdef", "truncate_prompt_tokens": 2})
        assert [(span["text"], span["start"]) for span in spans] == [("e", 4), ("f", 5)]
        long = "x" * 100_000
        assert await detokenized(caller, {"prompt": long, "truncate_prompt_tokens": 4}) == "xxxx"
        assert await caller.error("/tokenize", {"prompt": long}) == (400, "context_length_exceeded", "prompt")

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"messages": MESSAGES, "add_special_tokens": True}, 400, "add_special_tokens"),
        ({"messages": MESSAGES, "continue_final_message": True}, 400, "continue_final_message"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": MESSAGES, "prompt": "hi"}, 400, "prompt"),
        ({"messages": MESSAGES, "inputs": "hi"}, 400, "prompt"),
        ({"inputs": None}, 400, "prompt"),
        ({"prompt": "hi", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
        ({"prompt": "hi", "model": "nope"}, 404, "model"),
        ({"messages": MESSAGES, "model": "nope"}, 404, "model"),
        ({"prompt": "hi", "merged_adapters": {"ids": ["one"], "merge_strategy": "ties"}}, 400, None),
        ({"messages": MESSAGES, "merged_adapters": {"ids": ["nope"]}}, 404, "merged_adapters.ids[0]"),
    ],
)
def test_what_would_not_be_heeded_is_refused(
    tmp_path: Path, body: dict[str, Any], status: int, param: str | None
) -> None:
    async def scenario(caller: Caller) -> None:
        got, _, named = await caller.error("/tokenize", body)
        assert (got, named) == (status, param or "merged_adapters.merge_strategy")

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        ({"prompt": "hi", "tools": [TOOL], "x": 1}, "tools,x"),
        ({"inputs": "hi", "return_token_strs": True}, "return_token_strs"),
        ({"messages": [{"role": "user", "content": "hi", "mood": 1}], "y": 1}, "y,messages[0].mood"),
        ({"prompt": "hi", "return_token_strs": True, "model": ""}, None),
    ],
)
def test_what_is_ignored_is_named(tmp_path: Path, body: dict[str, Any], ignored: str | None) -> None:
    async def scenario(caller: Caller) -> None:
        status, _, headers = await post(caller, "/tokenize", body)
        assert (status, headers.get("x-motet-ignored")) == (200, ignored)

    drive(tmp_path, scenario)


def test_nothing_short_waits_behind_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(caller: Caller) -> None:
        text, release = caller.api.services.tokenizer, threading.Event()
        encode_batch, spans = text.encode_batch, text.spans

        def slow_batch(texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
            assert len(texts[0]) < LONG_TEXT or release.wait(10)
            return encode_batch(texts, add_special_tokens=add_special_tokens)

        def slow_spans(given: str, *, add_special_tokens: bool) -> list[tuple[int, int, int]]:
            assert release.wait(10)
            return spans(given, add_special_tokens=add_special_tokens)

        monkeypatch.setattr(text, "encode_batch", slow_batch)
        monkeypatch.setattr(text, "spans", slow_spans)
        long = "x" * LONG_TEXT
        bodies: list[tuple[str, dict[str, Any]]] = [("/tokenize", {"prompt": long}), ("/tokenize", {"inputs": long})]
        bodies.append((COMPLETIONS, {"prompt": long}))
        waiting = [asyncio.create_task(caller.answer(path, body)) for path, body in bodies * 20]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(caller.answer(CHAT, {"messages": MESSAGES}), 5)
        assert not any(task.done() for task in waiting)
        release.set()
        await asyncio.gather(*waiting)

    drive(tmp_path, scenario)
