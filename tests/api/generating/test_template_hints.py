"""Hints about thinking and length: passed to templates that read them, otherwise reported as ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, MESSAGES, Caller, drive, prompt_of

RESPONSES = "/v1/responses"
READS_ALL = "{{ reasoning_effort }}|{{ verbosity }}|{{ enable_thinking }}"


@pytest.mark.parametrize(
    ("path", "fields", "ignored"),
    [
        (CHAT, {"reasoning_effort": "low"}, "reasoning_effort"),
        (CHAT, {"reasoning": {"effort": "high", "summary": "auto"}}, "reasoning.effort"),
        (CHAT, {"verbosity": "low", "reasoning_effort": "low"}, "reasoning_effort,verbosity"),
        (CHAT, {"verbosity": "high", "mood": 1, "stream": True}, "mood,verbosity"),
        (CHAT, {"reasoning_effort": "none", "verbosity": "medium", "reasoning": None}, None),
        (RESPONSES, {"reasoning": {"effort": "minimal", "summary": "auto"}}, "reasoning.effort"),
        (RESPONSES, {"text": {"verbosity": "low"}, "stream": True}, "text.verbosity"),
        (RESPONSES, {"text": {"verbosity": "low"}, "background": True}, "text.verbosity"),
        (RESPONSES, {"reasoning": {"effort": "none"}, "text": {"verbosity": "medium"}}, None),
        (f"{RESPONSES}/input_tokens", {"text": {"verbosity": "low"}}, "text.verbosity"),
    ],
)
def test_hints_that_no_template_reads_are_named(
    tmp_path: Path, path: str, fields: dict[str, Any], ignored: str | None
) -> None:
    async def scenario(caller: Caller) -> None:
        text = {"messages": MESSAGES} if path == CHAT else {"input": "hi"}
        response = await caller.post(path, {**text, **fields})
        assert response.status_code == 200, await response.get_data()
        assert response.headers.get("x-motet-ignored") == ignored

    drive(tmp_path, scenario)


def test_hints_that_the_template_reads_reach_it(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path, fields in (
            (CHAT, {"messages": MESSAGES, "reasoning_effort": "low", "verbosity": "high"}),
            (CHAT, {"messages": MESSAGES, "reasoning": {"effort": "low"}, "verbosity": "high"}),
            (RESPONSES, {"input": "hi", "reasoning": {"effort": "low"}, "text": {"verbosity": "high"}}),
        ):
            response = await caller.post(path, fields)
            assert response.status_code == 200
            assert "x-motet-ignored" not in response.headers
            assert prompt_of(caller) == "low|high|True"
        answer = await response.get_json()
        assert (answer["reasoning"]["effort"], answer["text"]["verbosity"]) == ("low", "high")
        two = {"messages": MESSAGES, "reasoning_effort": "low", "reasoning": {"effort": "high"}}
        assert await caller.error(CHAT, two) == (400, "invalid_value", "reasoning.effort")
        wrong = {"messages": MESSAGES, "verbosity": "huge"}
        assert await caller.error(CHAT, wrong) == (400, "invalid_value", "verbosity")

    drive(tmp_path, scenario, template=READS_ALL)
