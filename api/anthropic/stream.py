"""A chat run as one of Anthropic's messages, which grows event by event."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from motet.api.anthropic.errors import anthropic_error
from motet.api.anthropic.objects import (
    AnsweredText,
    AnsweredToolUse,
    MessageEvent,
    MessageObject,
    MessageUsage,
    StopReason,
)
from motet.api.generating.chat import CallDelta, ChatDelta, ChatRun
from motet.api.generating.generation import finished
from motet.api.generating.tools import NO_ARGUMENTS, complete_arguments
from motet.api.http.caller import Caller
from motet.api.schema.objects import ENCODER
from motet.api.services import Services
from motet.core.errors import ErrorInfo


class MessageWriter:
    """Puts a message together. Every method returns the events that describe what it did."""

    def __init__(self, run: ChatRun, max_tokens: int) -> None:
        generation = run.generation
        self.message = MessageObject(
            id=generation.id,
            model=generation.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(generation.prompt_tokens, 0),
        )
        self._limit, self._max_tokens = generation.submits[0].params.max_tokens, max_tokens
        self._open: AnsweredText | AnsweredToolUse | None = None
        self._pieces: list[str] = []
        self._tokens = 0

    def begin(self) -> list[MessageEvent]:
        """The message exists."""
        return [MessageEvent(type="message_start", message=self.message), MessageEvent(type="ping")]

    def write(self, delta: ChatDelta) -> list[MessageEvent]:
        """Take a delta in; the last one ends the message."""
        self._tokens += len(delta.tokens)
        events: list[MessageEvent] = []
        for part in delta.parts:
            events += self._text(part) if isinstance(part, str) else self._call(part)
        if delta.finish_reason is not None:
            events += [*self._close(), *self._end(delta)]
        return events

    def _text(self, text: str) -> list[MessageEvent]:
        events = [] if isinstance(self._open, AnsweredText) else self._begin_block(AnsweredText(""))
        return [*events, self._delta({"type": "text_delta", "text": text}, text)]

    def _call(self, call: CallDelta) -> list[MessageEvent]:
        events: list[MessageEvent] = []
        if call.id is not None and call.name is not None:
            id = f"toolu_{call.id.removeprefix('call_')}"
            events += self._begin_block(AnsweredToolUse(id, call.name, NO_ARGUMENTS))
        if call.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}, call.arguments))
        return events

    def _begin_block(self, block: AnsweredText | AnsweredToolUse) -> list[MessageEvent]:
        events = self._close()
        self._open = block
        return [*events, MessageEvent(type="content_block_start", index=self._index, content_block=block)]

    @property
    def _index(self) -> int:
        return len(self.message.content)

    def _delta(self, delta: dict[str, Any], piece: str) -> MessageEvent:
        self._pieces.append(piece)
        return MessageEvent(type="content_block_delta", index=self._index, delta=delta)

    def _close(self) -> list[MessageEvent]:
        """End the block that is being written, if any."""
        block, self._open = self._open, None
        if block is None:
            return []
        text, event = "".join(self._pieces), MessageEvent(type="content_block_stop", index=self._index)
        self._pieces.clear()
        whole = (
            replace(block, text=text)
            if isinstance(block, AnsweredText)
            else replace(block, input=complete_arguments(text))
        )
        self.message.content.append(whole)
        return [event]

    def _end(self, delta: ChatDelta) -> list[MessageEvent]:
        reason = self._stop_reason(delta)
        sequence = delta.stop_reason if reason == "stop_sequence" and isinstance(delta.stop_reason, str) else None
        usage = replace(self.message.usage, output_tokens=self._tokens)
        self.message = replace(self.message, stop_reason=reason, stop_sequence=sequence, usage=usage)
        ended = {"stop_reason": reason, "stop_sequence": sequence}
        return [MessageEvent(type="message_delta", delta=ended, usage=usage), MessageEvent(type="message_stop")]

    def _stop_reason(self, delta: ChatDelta) -> StopReason:
        if delta.finish_reason == "tool_calls":
            return "tool_use"
        if delta.finish_reason == "length":
            return "max_tokens" if self._limit == self._max_tokens else "model_context_window_exceeded"
        return "stop_sequence" if isinstance(delta.stop_reason, str) else "end_turn"


class MessageStream:
    """A message on its way: whole, or event by event."""

    def __init__(self, services: Services, run: ChatRun, max_tokens: int, caller: Caller) -> None:
        self._services, self._run, self._caller = services, run, caller
        self._writer = MessageWriter(run, max_tokens)

    async def whole(self) -> MessageObject:
        """The complete message. Raises MotetError."""
        async with aclosing(self._run.deltas(self._services)) as deltas:
            async for _, delta in deltas:
                self._writer.write(delta)
        finished(self._writer.message.stop_reason)
        return self._writer.message

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events. Nothing is sent before the first token: until then a failure gets its own status."""
        frames = b"".join(map(_frame, self._writer.begin()))
        async with aclosing(self._run.deltas(self._services)) as deltas:
            async for _, delta in deltas:
                frames += b"".join(map(_frame, self._writer.write(delta)))
                if not delta.more:
                    yield frames
                    frames = b""

    def failure(self, info: ErrorInfo) -> bytes:
        """The event that ends a stream whose request failed."""
        return b"event: error\ndata: " + ENCODER.encode(anthropic_error(info, self._caller.request_id)) + b"\n\n"


def _frame(event: MessageEvent) -> bytes:
    return b"event: " + event.type.encode() + b"\ndata: " + ENCODER.encode(event) + b"\n\n"
