"""The accumulator of every route: adds up the deltas of a sequence to its whole answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from motet.api.generating.chat_deltas import ChatDelta
from motet.api.schema.openai_objects import CallKind, ChatFinishReason
from motet.core.errors import MotetError
from motet.engine.client.text_stream import TextDelta

T = TypeVar("T")
D = TypeVar("D", TextDelta, ChatDelta)


@dataclass
class Call:
    """A tool call of an answer."""

    id: str
    name: str
    kind: CallKind
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The arguments, or the input of a custom tool."""
        return "".join(self.pieces)


@dataclass
class Answer:
    """The whole answer of one sequence."""

    texts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: TextDelta | ChatDelta) -> None:
        """Add the next delta."""
        self.texts.append(delta.text)
        self.token_ids += [event.token for event in delta.tokens]
        self.logprob_sum += sum(event.logprob or 0.0 for event in delta.tokens)
        if isinstance(delta, ChatDelta):
            for call in delta.calls:
                if call.id is not None and call.name is not None:
                    self.calls.append(Call(call.id, call.name, call.kind))
                self.calls[call.index].pieces.append(call.arguments)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    @property
    def text(self) -> str:
        """The text outside of calls."""
        return "".join(self.texts)

    @property
    def tokens(self) -> int:
        """The number of tokens, including those of calls and those that ended the answer."""
        return len(self.token_ids)

    @property
    def mean_logprob(self) -> float:
        """The average logprob of its tokens; 0 where logprobs are not known."""
        return self.logprob_sum / max(self.tokens, 1)

    def finish(self) -> ChatFinishReason:
        """Why it ended. Raises MotetError if it has not ended."""
        return require_finished(self.finish_reason)


async def collect(
    deltas: AsyncGenerator[tuple[int, D], None], count: int, observe: Callable[[int, D], None] | None = None
) -> list[Answer]:
    """The answers of `count` sequences, in order.

    `observe` sees each (sequence number, delta) as it arrives: a route's own work on tokens must not wait for the end,
    where all of it at once would delay other requests.
    """
    answers = [Answer() for _ in range(count)]
    async with aclosing(deltas):
        async for index, delta in deltas:
            answers[index].add(delta)
            if observe is not None:
                observe(index, delta)
    return answers


def require_finished(reason: T | None) -> T:
    """The reason why a sequence ended. Raises MotetError if it has not ended."""
    if reason is None:
        raise MotetError("the engine's answer broke off")
    return reason
