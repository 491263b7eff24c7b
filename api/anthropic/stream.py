"""Writes a chat generation as one of Anthropic's messages, whole or event by event."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from motet.api.anthropic.objects import (
    AnsweredText,
    AnsweredToolUse,
    MessageEvent,
    MessageObject,
    MessageUsage,
    StopReason,
)
from motet.api.generating.answer import require_finished
from motet.api.generating.chat_deltas import CallDelta, ChatDelta
from motet.api.generating.chat_generation import ChatGeneration
from motet.api.generating.tools import NO_ARGUMENTS, complete_arguments
from motet.api.http.sse import event_frame
from motet.api.http.stream_response import Frames


class MessageWriter:
    """Builds a message from deltas. Every method returns the events that describe its changes."""

    def __init__(self, chat: ChatGeneration, max_tokens: int) -> None:
        generation = chat.generation
        self.message = MessageObject(
            id=generation.id,
            model=generation.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(generation.prompt_tokens, 0),
        )
        self._limit, self._max_tokens = generation.sequences[0].params.max_tokens, max_tokens
        self._open: AnsweredText | AnsweredToolUse | None = None
        self._pieces: list[str] = []
        self._tokens = 0

    def begin(self) -> list[MessageEvent]:
        """Begin the message."""
        return [MessageEvent(type="message_start", message=self.message), MessageEvent(type="ping")]

    def write(self, delta: ChatDelta) -> list[MessageEvent]:
        """Add a delta; the last one ends the message."""
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
        """End the open block, if there is one."""
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


async def write_whole(chat: ChatGeneration, max_tokens: int) -> MessageObject:
    """The complete message. Raises MotetError."""
    writer = MessageWriter(chat, max_tokens)
    async with aclosing(chat.deltas()) as deltas:
        async for _, delta in deltas:
            writer.write(delta)
    require_finished(writer.message.stop_reason)
    return writer.message


async def write_stream(chat: ChatGeneration, max_tokens: int) -> Frames:
    """The events. Nothing is sent before the first token: until then a failure gets its own status."""
    writer = MessageWriter(chat, max_tokens)
    frames = _frames(writer.begin())
    async with aclosing(chat.deltas()) as deltas:
        async for _, delta in deltas:
            yield frames + _frames(writer.write(delta)), delta.more
            frames = b""


def _frames(events: list[MessageEvent]) -> bytes:
    return b"".join(event_frame(event, event.type) for event in events)
