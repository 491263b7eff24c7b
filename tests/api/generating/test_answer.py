"""Deltas of text and of tool calls add up to whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from motet.api.generating.answer import Answer, collect
from motet.api.generating.chat_deltas import CallDelta, ChatDelta
from motet.core.errors import MotetError
from motet.core.messages import TokenEvent
from motet.engine.client.text_stream import TextDelta


def token(id: int, logprob: float) -> TokenEvent:
    return TokenEvent("s", id, logprob=logprob)


def test_text_ids_and_logprobs_add_up() -> None:
    answer = Answer()
    answer.add(TextDelta("He", (token(1, -1.0), token(2, -2.0))))
    answer.add(TextDelta("llo", (token(3, -3.0),), "stop", "END"))
    assert (answer.text, answer.token_ids, answer.tokens) == ("Hello", [1, 2, 3], 3)
    assert answer.mean_logprob == -2.0
    assert (answer.finish(), answer.stop_reason) == ("stop", "END")


def test_pieces_of_calls_add_up() -> None:
    answer = Answer()
    answer.add(ChatDelta(("Well: ", CallDelta(0, '{"a"', "call_1", "f")), ()))
    answer.add(ChatDelta((CallDelta(0, ": 1}"), CallDelta(1, "text", "call_2", "g", "custom")), (), "tool_calls"))
    assert answer.text == "Well: "
    assert [(call.id, call.name, call.kind, call.arguments) for call in answer.calls] == [
        ("call_1", "f", "function", '{"a": 1}'),
        ("call_2", "g", "custom", "text"),
    ]


def test_an_answer_that_has_not_ended_has_no_finish() -> None:
    with pytest.raises(MotetError, match="broke off"):
        Answer().finish()


def test_collect_keeps_sequences_apart_and_shows_every_delta() -> None:
    async def deltas() -> AsyncGenerator[tuple[int, TextDelta], None]:
        yield 1, TextDelta("b", (token(1, 0.0),))
        yield 0, TextDelta("a", (token(2, 0.0),), "stop")
        yield 1, TextDelta("c", (token(3, 0.0),), "length")

    seen: list[tuple[int, str]] = []
    answers = asyncio.run(collect(deltas(), 2, lambda index, delta: seen.append((index, delta.text))))
    assert [(answer.text, answer.finish()) for answer in answers] == [("a", "stop"), ("bc", "length")]
    assert seen == [(1, "b"), (0, "a"), (1, "c")]
