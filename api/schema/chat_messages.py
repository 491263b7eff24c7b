"""The messages of a chat request: content parts, an assistant's tool calls, and their limits."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import msgspec

from motet.api.schema.request_fields import described

MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 4096


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A part of a message's text."""

    text: str


class InputTextPart(TextPart, frozen=True, tag_field="type", tag="input_text"):
    """The Responses API's type of a text part in a request."""


class OutputTextPart(TextPart, frozen=True, tag_field="type", tag="output_text"):
    """The Responses API's type of a text part in a response."""


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """An assistant's refusal; treated as text."""

    refusal: str


class FunctionCall(msgspec.Struct, frozen=True):
    """The function that an earlier assistant message called."""

    name: str
    arguments: Annotated[str, described("A JSON object, as a string.", '{"city": "Bergen"}')]


class CustomCall(msgspec.Struct, frozen=True):
    """The custom tool that an earlier assistant message called."""

    name: str
    input: str


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call in an earlier assistant message, of a `function` or a `custom` tool."""

    id: str
    function: FunctionCall | None = None
    type: Literal["function", "custom"] = "function"
    custom: CustomCall | None = None

    def as_function(self) -> FunctionCall:
        """The call as a function call; a custom tool's has one argument, `input`."""
        if self.function is not None:
            return self.function
        assert self.custom is not None, "check_chat_fields has checked it"
        return FunctionCall(self.custom.name, json.dumps({"input": self.custom.input}, ensure_ascii=False))


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        str | list[TextPart | InputTextPart | OutputTextPart | RefusalPart] | None,
        described(
            "A string, or a list of text parts, which are joined; null in an assistant message is empty.", "Ahoy!"
        ),
    ] = None
    refusal: Annotated[str | None, described("An assistant's refusal.")] = None
    name: Annotated[str | None, described("The author's name; most chat templates ignore it.")] = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Annotated[str | None, described("The id of the call that a `tool` message answers.")] = None

    def text(self) -> str:
        """The content as one string; the refusal if there is no content."""
        if isinstance(self.content, str):
            return self.content
        parts = (part.text if isinstance(part, TextPart) else part.refusal for part in self.content or ())
        return "".join(parts) or self.refusal or ""
