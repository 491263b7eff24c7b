"""What one choice of a chat request adds at a time: text and pieces of tool calls."""

from __future__ import annotations

import msgspec

from motet.api.schema.openai_objects import CallKind, ChatFinishReason
from motet.core.messages import TokenEvent


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: `index` counts the message's calls; `id` and `name` come once, first; then arguments.

    The arguments of a `custom` tool's call are its input, plain text.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    kind: CallKind = "function"


class ChatDelta(msgspec.Struct, frozen=True):
    """What a choice's message gains: strings of text and pieces of calls, in their order.

    `finish_reason` is set on the choice's last delta alone. `more`: the next delta has arrived too.
    """

    parts: tuple[str | CallDelta, ...]
    tokens: tuple[TokenEvent, ...]
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | None = None
    more: bool = False

    @property
    def text(self) -> str:
        """The text outside of calls, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> tuple[CallDelta, ...]:
        """The pieces of calls."""
        return tuple(part for part in self.parts if isinstance(part, CallDelta))
