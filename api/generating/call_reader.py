"""Reads the tool calls in a choice's text as it arrives."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

from motet.api.generating.chat_deltas import CallDelta, ChatDelta
from motet.api.generating.custom_tools import InputReader
from motet.api.generating.repeated_calls import RepeatedCalls
from motet.api.generating.tools import ToolUse
from motet.api.schema.openai_objects import CallKind, ChatFinishReason
from motet.core.tool_parser import CallPiece
from motet.engine.client.text_stream import TextDelta


class CallReader:
    """Separates one choice's text from the tool calls in it."""

    def __init__(self, tools: ToolUse) -> None:
        self._reader = tools.parser.reader(tools.tools)
        self._parallel, self._required, self._custom = tools.parallel, tools.required, tools.custom
        # Where the model is not forced to call, a repeated call may be intended.
        self._repeated = RepeatedCalls() if tools.required and tools.parallel else None
        self._calls = 0
        self._latest: list[str] = []  # the latest call's arguments
        self._is_raw = False  # those arguments are plain text
        self._input: tuple[int, InputReader] | None = None  # of the latest call, if it is a custom tool's

    def read(self, delta: TextDelta) -> ChatDelta:
        """The same delta with its calls."""
        pieces = self._reader.push(delta.text) if delta.text else []
        finish: ChatFinishReason | None = delta.finish_reason
        if finish is not None:
            pieces += self._reader.finish()
        parts: list[str | CallDelta] = []
        for piece in pieces:
            # What follows the only call allowed is not part of the answer.
            if isinstance(piece, CallPiece) and (self._parallel or piece.index == 0):
                parts += self._numbered(piece)
            elif isinstance(piece, str) and self._is_shown(piece):
                parts.append(piece)
            if self._repeated is not None and self._repeated.found:
                return ChatDelta((*parts, *self._ended_input()), delta.tokens, "tool_calls")
        if finish is not None:
            parts += self._ended_input()
        if finish == "stop" and self._calls and (self._is_raw or _is_object("".join(self._latest))):
            finish = "tool_calls"
        return ChatDelta(tuple(parts), delta.tokens, finish, delta.stop_reason, delta.more)

    def _is_shown(self, text: str) -> bool:
        # Where the answer must be calls, text can only be the beginning of a call that was cut off.
        return bool(text) and not self._required and (self._parallel or not self._calls)

    def _numbered(self, piece: CallPiece) -> list[CallDelta]:
        released = [piece] if self._repeated is None else self._repeated.push(piece)
        return [delta for piece in released for delta in self._deltas(piece)]

    def _deltas(self, piece: CallPiece) -> Iterator[CallDelta]:
        if piece.name is None:
            self._latest.append(piece.arguments)
            if self._input is None:
                yield CallDelta(piece.index, piece.arguments)
            elif text := self._input[1].push(piece.arguments):
                yield CallDelta(piece.index, text, kind="custom")
            return
        yield from self._ended_input()
        self._calls += 1
        self._latest, self._is_raw = [piece.arguments], piece.raw
        kind: CallKind = "function"
        arguments = piece.arguments
        if piece.name in self._custom:
            self._input = (piece.index, InputReader(piece.raw))
            arguments, kind = self._input[1].push(piece.arguments), "custom"
        yield CallDelta(piece.index, arguments, f"call_{uuid.uuid4().hex[:24]}", piece.name, kind)

    def _ended_input(self) -> list[CallDelta]:
        """The rest of the latest call's input, which has ended."""
        ended, self._input = self._input, None
        text = ended[1].finish() if ended else ""
        return [CallDelta(ended[0], text, kind="custom")] if ended and text else []


def _is_object(arguments: str) -> bool:
    """Whether a call's arguments are complete: the text may have ended inside them."""
    try:
        return isinstance(json.loads(arguments), dict)  # which takes what clients take: a lone surrogate, 1e999
    except (ValueError, RecursionError):
        return False
