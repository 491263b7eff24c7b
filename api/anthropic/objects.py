"""The answers of Anthropic's API as structs: messages, events, token counts, lists of models, errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

StopReason: TypeAlias = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AnsweredText(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text of an answer."""

    text: str
    citations: None = None


class AnsweredToolUse(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call that the model made; `input` is empty if the answer ended before the call was complete."""

    id: str
    name: str
    input: Annotated[msgspec.Raw, Meta(description="A JSON object.")]


class MessageUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessageObject(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a message request."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnsweredText | AnsweredToolUse]
    stop_reason: Annotated[StopReason | None, Meta(description="Null only in `message_start`.")]
    stop_sequence: Annotated[str | None, Meta(description="The stop sequence that ended the answer.")]
    usage: MessageUsage


class MessageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a streamed message. Which fields it has depends on its type."""

    type: Annotated[
        Literal[
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ],
        Meta(description="Also the name of the event."),
    ]
    message: MessageObject | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: AnsweredText | AnsweredToolUse | UnsetType = UNSET
    delta: dict[str, Any] | UnsetType = UNSET
    usage: MessageUsage | UnsetType = UNSET


class TokenCount(msgspec.Struct, frozen=True):
    """How many tokens a request's prompt has."""

    input_tokens: int


class AnthropicModel(msgspec.Struct, frozen=True, kw_only=True):
    """The base model, or an adapter, as Anthropic's clients read it."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    max_input_tokens: Annotated[int | None, Meta(description="The context, in tokens.")]
    max_tokens: Annotated[int | None, Meta(description="The context, in tokens.")]
    lifecycle: Literal["active"] = "active"


class AnthropicModelList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the models."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class AnthropicErrorObject(msgspec.Struct, frozen=True):
    """The error; the message names the field."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is not 2xx, and the data of an `error` event."""

    type: Literal["error"] = "error"
    error: AnthropicErrorObject
    request_id: str | None
