"""The messages of a chat request: content parts, calls of tools that an assistant made, and their limits."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import msgspec

from motet.api.schema.request_fields import described

MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 4096


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of a message's text."""

    text: str


class InputTextPart(TextPart, frozen=True, tag_field="type", tag="input_text"):
    """The Responses API's name for a piece of text that was sent."""


class OutputTextPart(TextPart, frozen=True, tag_field="type", tag="output_text"):
    """The Responses API's name for a piece of text that was answered."""


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What an assistant said when it refused; text as any other."""

    refusal: str


class FunctionCall(msgspec.Struct, frozen=True):
    """The function that an earlier assistant message called."""

    name: str
    arguments: Annotated[str, described("A JSON object, as text.", '{"city": "Bergen"}')]


class CustomCall(msgspec.Struct, frozen=True):
    """The custom tool that an earlier assistant message called."""

    name: str
    input: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an earlier assistant message made, of a `function` or of a `custom` tool."""

    id: str
    function: FunctionCall | None = None
    type: Literal["function", "custom"] = "function"
    custom: CustomCall | None = None

    def as_function(self) -> FunctionCall:
        """The call as one of a function; a custom tool's has one argument, `input`."""
        if self.function is not None:
            return self.function
        assert self.custom is not None, "check_chat_fields has seen to it"
        return FunctionCall(self.custom.name, json.dumps({"input": self.custom.input}, ensure_ascii=False))


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        str | list[TextPart | InputTextPart | OutputTextPart | RefusalPart] | None,
        described("Text, or a list of text parts, which are joined; null from an assistant is empty.", "Ahoy!"),
    ] = None
    refusal: Annotated[str | None, described("What an assistant said when it refused.")] = None
    name: Annotated[str | None, described("Who speaks; most chat templates ignore it.")] = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Annotated[str | None, described("Which call a `tool` message answers.")] = None

    def text(self) -> str:
        """The content as one text; the refusal, where there is nothing else."""
        if isinstance(self.content, str):
            return self.content
        parts = (part.text if isinstance(part, TextPart) else part.refusal for part in self.content or ())
        return "".join(parts) or self.refusal or ""
