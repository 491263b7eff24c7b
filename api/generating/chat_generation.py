"""Streams a chat request: the deltas of its choices, with tool calls read from the text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec

from motet.api.generating.call_reader import CallReader
from motet.api.generating.chat_deltas import ChatDelta
from motet.api.generating.chat_prompts import ignored_hints, render_chat
from motet.api.generating.checked_chat import CheckedChat, check_chat
from motet.api.generating.generation import Generation
from motet.api.generating.merged_streams import merge
from motet.api.generating.tools import ToolUse
from motet.api.http.caller import Caller
from motet.api.schema.chat_request import ChatRequest
from motet.api.services import Services
from motet.engine.client.text_stream import TextDelta


@dataclass(frozen=True)
class ChatGeneration:
    """The sequences of a chat request, one per choice. `echo` is what each choice's text begins with.

    `ignored` are the fields of the request that have no effect on it.
    """

    generation: Generation
    tools: ToolUse | None
    echo: str
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, checked: CheckedChat, prompt: tuple[int, ...], response_id: str | None = None) -> ChatGeneration:
        """The sequences that answer `prompt`. Raises ContextExceeded, InvalidRequest."""
        request, tools = checked.request, checked.tools
        generation = Generation.of(checked, [prompt], response_id)
        last = request.messages[-1]
        echo = last.text() if request.echo and last.role == "assistant" else ""
        ignored = ignored_hints(request, checked.template)
        return cls(
            replace(generation, visible_special_ids=tools.marker_ids) if tools else generation, tools, echo, ignored
        )

    def limited(self, max_tokens: int) -> ChatGeneration:
        """The same, with answers of at most `max_tokens`, if that is less than the context leaves."""
        return replace(self, generation=self.generation.limited(max_tokens))

    async def deltas(self) -> AsyncGenerator[tuple[int, ChatDelta], None]:
        """(choice number, delta) as they arrive; closing this ends every sequence at once."""
        streams = [self._choice(index, stream) for index, stream in enumerate(self.generation.streams())]
        async with aclosing(merge(streams)) as merged:
            async for indexed in merged:
                yield indexed

    async def _choice(self, index: int, stream: AsyncGenerator[TextDelta, None]) -> AsyncGenerator[ChatDelta, None]:
        """One choice's deltas; its sequence ends with the last of them, even if the model would continue."""
        reader = CallReader(self.tools) if self.tools else None
        echo = self.echo
        async with aclosing(stream):
            async for text_delta in stream:
                delta = reader.read(text_delta) if reader is not None else _without_calls(text_delta)
                if echo:
                    delta = msgspec.structs.replace(delta, parts=(echo, *delta.parts))
                    echo = ""
                if delta.finish_reason is not None:
                    await stream.aclose()  # before the client has read the last delta
                    if text_delta.finish_reason is None:
                        self.generation.timing.add(index, TextDelta("", (), "stop"))
                    yield delta
                    return
                yield delta


def _without_calls(delta: TextDelta) -> ChatDelta:
    parts = (delta.text,) if delta.text else ()
    return ChatDelta(parts, delta.tokens, delta.finish_reason, delta.stop_reason, delta.more)


async def start_chat(
    services: Services, request: ChatRequest, caller: Caller, response_id: str | None = None
) -> ChatGeneration:
    """Check and render `request`. Everything that can be refused has been when this returns. Raises MotetError."""
    checked = await check_chat(services, request, caller)
    prompt = await render_chat(checked.services, request, checked.template, checked.tools)
    return ChatGeneration.of(checked, prompt, response_id)
