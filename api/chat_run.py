"""A chat request, checked and rendered, running as typed deltas. Knows nothing of HTTP or of a route's JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import msgspec

from motet.api.caller import Caller
from motet.api.generation import Generation, Output, check, collect
from motet.api.prompts import chat_prompt
from motet.api.schemas import ChatRequest
from motet.api.services import Services
from motet.core.messages import TokenEvent


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: `index` counts the message's calls; `id` and `name` come once, first; then arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class ChatDelta(msgspec.Struct, frozen=True):
    """What a choice's message gains. `finish_reason` is set on the choice's last delta alone."""

    text: str
    tokens: tuple[TokenEvent, ...]
    calls: tuple[CallDelta, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class ChatRun:
    """One chat request's sequences; read `deltas` as they come, or `collect` the whole."""

    generation: Generation

    @classmethod
    async def start(cls, services: Services, request: ChatRequest, caller: Caller) -> ChatRun:
        """Everything that can be refused before work starts has been, once this returns. Raises MotetError."""
        checked = await check(services, request, caller)
        prompt = await chat_prompt(services, request, checked.adapter)
        return cls(Generation.of(services, request, checked, [prompt]))

    async def deltas(self, services: Services) -> AsyncGenerator[tuple[int, ChatDelta], None]:
        """(choice, what it adds) as things come; closing this ends every sequence at once."""
        async with aclosing(self.generation.deltas(services)) as deltas:
            async for index, delta in deltas:
                yield index, ChatDelta(delta.text, delta.tokens, (), delta.finish_reason, delta.stop_reason)

    async def collect(
        self, services: Services, write_logprobs: Callable[[int, Sequence[TokenEvent]], None]
    ) -> list[Output]:
        """Every choice's whole answer; see `generation.collect`."""
        return await collect(self.generation, services, write_logprobs)
