"""The bodies of POST /v1/messages and /v1/messages/count_tokens, and the content blocks of messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_messages import MAX_MESSAGES
from motet.api.schema.chat_tools import MAX_TOOLS
from motet.api.schema.request_fields import MAX_STOP_STRINGS, Effort, Fraction, Positive, StopString, described


class TextBlock(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str
    citations: Annotated[Any, described("Accepted; has no effect.")] = None
    cache_control: Annotated[Any, described("Accepted; has no effect.")] = None


class ToolUseBlock(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call that an earlier assistant message made."""

    id: str
    name: str
    input: dict[str, Any]
    caller: Annotated[Any, described("Accepted; has no effect.")] = None
    cache_control: Annotated[Any, described("Accepted; has no effect.")] = None


class ToolResultBlock(msgspec.Struct, frozen=True, tag_field="type", tag="tool_result"):
    """The result of a call."""

    tool_use_id: str
    content: Annotated[str | list[dict[str, Any]] | None, described("A string, or a list of text blocks.")] = None
    is_error: Annotated[bool | None, described("True: the model reads `Error: ` before the content.")] = None
    cache_control: Annotated[Any, described("Accepted; has no effect.")] = None


class ThinkingBlock(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """An earlier answer's thinking; accepted, but the model does not read it."""

    thinking: str = ""
    signature: str | None = None


class RedactedThinkingBlock(msgspec.Struct, frozen=True, tag_field="type", tag="redacted_thinking"):
    """An earlier answer's encrypted thinking; accepted, but the model does not read it."""

    data: str = ""


Block: TypeAlias = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class InputMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        str | list[dict[str, Any]],
        described(
            "A string, or a list of blocks: `text`, `tool_use`, `tool_result`, `thinking` and `redacted_thinking`.",
            "Ahoy!",
            [{"type": "text", "text": "Ahoy!"}],
        ),
    ]


class ClientTool(msgspec.Struct, frozen=True):
    """A tool that the client runs."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$", examples=["get_weather"])]
    input_schema: Annotated[dict[str, Any], described("A JSON schema of the input, an object.")]
    description: str | None = None
    strict: Annotated[bool | None, described("The input must match the schema whenever the tool is called.")] = None
    type: Literal["custom"] | None = None
    cache_control: Annotated[Any, described("Accepted; has no effect.")] = None
    input_examples: Annotated[Any, described("Accepted; has no effect.")] = None
    allowed_callers: Annotated[Any, described("Accepted; has no effect.")] = None
    eager_input_streaming: Annotated[
        bool | None, described("Accepted; input is always streamed as it is generated.")
    ] = None


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether the model may, must or must not call a tool."""

    type: Annotated[
        Literal["auto", "any", "tool", "none"], described("`any`: at least one call; `tool`: one call of `name`.")
    ]
    name: str | None = None
    disable_parallel_tool_use: Annotated[bool | None, described("True: at most one call.")] = None


class Thinking(msgspec.Struct, frozen=True):
    """Extended thinking; only `disabled` has an effect."""

    type: Annotated[
        str,
        described("`disabled` is passed to chat templates that can switch thinking off; other types are ignored."),
    ]
    budget_tokens: int | None = None
    display: str | None = None


class OutputConfig(msgspec.Struct, frozen=True):
    """The format of the answer, and the effort to spend on it."""

    format: Annotated[
        dict[str, Any] | None, described('`{"type": "json_schema", "schema": {…}}`: the answer matches the schema.')
    ] = None
    effort: Annotated[
        Effort | None, described("For chat templates that read `reasoning_effort`; others ignore it.")
    ] = None


class CountTokensRequest(AdapterChoice, frozen=True, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""

    messages: Annotated[
        Annotated[list[InputMessage], Meta(min_length=1, max_length=MAX_MESSAGES)],
        described(
            "The conversation so far. If the last message is an assistant's, the answer continues it.",
            [{"role": "user", "content": "Tell me about the sea."}],
        ),
    ]
    system: Annotated[
        str | list[TextBlock] | None, described("The system prompt: a string, or a list of text blocks.")
    ] = None
    tools: Annotated[
        Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None,
        described(
            "Tools that the model may call. Tools that Anthropic runs are left out and named in `x-motet-ignored`."
        ),
    ] = None
    tool_choice: Annotated[ToolChoice | None, described("Whether the model may call, or must, and which tool.")] = None
    thinking: Annotated[Thinking | None, described("Extended thinking; only `disabled` has an effect.")] = None
    output_config: Annotated[OutputConfig | None, described("The answer's format, and the effort to spend on it.")] = (
        None
    )
    output_format: Annotated[dict[str, Any] | None, described("The older name of `output_config.format`.")] = None
    cache_control: Annotated[Any, described("Accepted; has no effect.")] = None


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[Positive, described("Longest answer, in tokens; the context may end it earlier.", 64)]
    stream: Annotated[bool | None, described("Answer as server-sent events.")] = None
    stop_sequences: Annotated[
        Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None,
        described("The answer ends before the first of these.", ["\n\n"]),
    ] = None
    temperature: Annotated[Annotated[float, Meta(ge=0, le=2)] | None, described("0 is greedy.", 0.7)] = None
    top_p: Annotated[Fraction | None, described("Sample from the most likely tokens of this total mass.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None, described("Sample from the k likeliest; 0 or -1: all.")
    ] = None
    metadata: Annotated[dict[str, Any] | None, described("Accepted; has no effect.")] = None
    service_tier: Annotated[str | None, described("Accepted; has no effect.")] = None
    inference_geo: Annotated[str | None, described("Accepted; has no effect.")] = None
