"""Grammars are compiled apart from everything else: what takes for ever costs its own caller alone."""

from __future__ import annotations

import asyncio
import string
import time
from pathlib import Path
from typing import Any

import pytest
from support.caller import CHAT, MESSAGES, Caller, drive

from motet.api import grammar


def endless(salt: str) -> dict[str, Any]:
    """A format whose grammar is small and takes longer than anybody lives."""
    patterns = [{"type": "string", "pattern": f".*{letter}.*"} for letter in string.ascii_lowercase]
    return {"type": "json_object", "schema": {"type": "object", "properties": {salt: {"allOf": patterns}}}}


def test_a_grammar_that_takes_for_ever_stops_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
