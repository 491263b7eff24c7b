"""Grammars are compiled in separate processes: an expensive one fails its own request only."""

from __future__ import annotations

import asyncio
import string
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, MESSAGES, Caller, drive

from motet.api import grammar_checker as grammar
from motet.core.output_format import GrammarSpec, OutputFormat


def endless(salt: str) -> dict[str, Any]:
    """A format whose grammar is small and takes longer than anybody lives."""
    patterns = [{"type": "string", "pattern": f".*{letter}.*"} for letter in string.ascii_lowercase]
    return {"type": "json_object", "schema": {"type": "object", "properties": {salt: {"allOf": patterns}}}}


def test_an_endless_grammar_does_not_block_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_SECONDS", 1.5)

    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}})
        bad = [
            asyncio.create_task(caller.error(CHAT, {"messages": MESSAGES, "response_format": endless(salt)}))
            for salt in "abcdef"
        ]
        await asyncio.sleep(0.2)
        begun = time.perf_counter()
        for _ in range(10):
            await caller.answer(CHAT, {"messages": MESSAGES})
        assert time.perf_counter() - begun < 1.0
        assert set(await asyncio.gather(*bad)) == {(400, "invalid_grammar", "response_format")}
        begun = time.perf_counter()
        await caller.error(CHAT, {"messages": MESSAGES, "response_format": endless("a")})
        assert time.perf_counter() - begun < 0.5, "it is remembered"
        good = {"type": "json_object", "schema": {"type": "object", "properties": {"x": {"type": "string"}}}}
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": good})

    drive(tmp_path, scenario)


def test_a_blocking_output_format_does_not_block_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Blocks(OutputFormat):
        def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec | None:
            released.wait(30)
            return None

    class Wrong(OutputFormat):
        def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec | None:
            return "a text"  # type: ignore[return-value]

    monkeypatch.setattr(grammar, "FORMAT_SECONDS", 0.3)

    async def scenario(caller: Caller) -> None:
        register = caller.api.services.plugins.output_formats.adder("tests")
        register("blocks", Blocks())
        register("wrong", Wrong())
        body = {"messages": MESSAGES, "response_format": {"type": "blocks"}}
        blocked = [asyncio.create_task(caller.error(CHAT, body)) for _ in range(20)]
        await asyncio.sleep(0.05)
        json_object = {"messages": MESSAGES, "response_format": {"type": "json_object"}}
        assert (await caller.answer(CHAT, json_object))["choices"]
        assert {status for status, _, _ in await asyncio.gather(*blocked)} == {503}
        released.set()
        response = await caller.post(CHAT, {"messages": MESSAGES, "response_format": {"type": "wrong"}})
        assert response.status_code == 500
        assert "Wrong.grammar returned str" in (await response.get_json())["error"]["message"]

    drive(tmp_path, scenario)
