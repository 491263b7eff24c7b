"""Translates a request to Anthropic's API into a chat request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import msgspec

from motet.api.anthropic.content import ContentReader
from motet.api.anthropic.requests import CountTokensRequest, MessagesRequest
from motet.api.anthropic.tools import OfferedTools, offered_tools
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.ignored_fields_header import MAX_IGNORED_NAMES
from motet.api.schema.parsing import Parsed, check_adapters, check_chat_fields, convert, unknown_fields
from motet.api.schema.request_fields import Effort
from motet.core.errors import InvalidRequest, MotetError

_SHARED_FIELDS = (*AdapterChoice.__struct_fields__, "temperature", "top_p", "top_k", "stream")
"""Fields that chat requests have under the same name."""

# The chat request's fields -> the caller's names of them.
_ANTHROPIC_NAMES = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "tool_choice.allowed_tools": "tool_choice",
    "continue_final_message": "messages",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
_CHAT_NAME = re.compile(rf"\b(?:{'|'.join(map(re.escape, _ANTHROPIC_NAMES))})\b")
_PARAMETERS = re.compile(r"tools\[([0-9]{1,4})\]\.function\.parameters")


class Translated(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a chat request.

    `chat.max_tokens` is not set, since the caller's `max_tokens` may exceed the context. `tools` holds the index of
    each of the chat request's tools in the caller's list.
    """

    chat: ChatRequest
    max_tokens: int
    tools: tuple[int, ...]


def parse_messages(body: dict[str, Any]) -> Parsed[Translated]:
    """The body of POST /v1/messages. Raises InvalidRequest."""
    request = convert(body, MessagesRequest)
    return _parsed(body, request, request.max_tokens, {"stop": request.stop_sequences})


def parse_counted(body: dict[str, Any]) -> Parsed[Translated]:
    """The body of POST /v1/messages/count_tokens. Raises InvalidRequest."""
    # Count a prompt that is too long for the context, too: without generation, nothing is truncated.
    return _parsed(body, convert(body, CountTokensRequest), 1, {"truncate_prompt_tokens": -1})


def _parsed(
    body: dict[str, Any], request: CountTokensRequest, max_tokens: int, fields: dict[str, Any]
) -> Parsed[Translated]:
    check_adapters(request)
    reader, tools = ContentReader(), offered_tools(request.tools or ())
    messages = reader.messages(request.system, request.messages)
    thinking = request.thinking.type if request.thinking else None
    chat = _chat_request(request, messages, tools, fields)
    with anthropic_names(tools.indexes):
        check_chat_fields(chat)
    ignored = (
        *unknown_fields(body, type(request), {}),
        *(["thinking"] if thinking not in (None, "disabled") else ()),
        *tools.ignored,
        *reader.ignored,
    )
    translated = Translated(chat=chat, max_tokens=max_tokens, tools=tools.indexes)
    return Parsed(translated, tuple(islice(ignored, MAX_IGNORED_NAMES)))


def _chat_request(
    request: CountTokensRequest, messages: list[Message], tools: OfferedTools, fields: dict[str, Any]
) -> ChatRequest:
    """`request` with these messages and tools, and the additional `fields`. Raises InvalidRequest."""
    last, choice = messages[-1], request.tool_choice
    shared = {name: getattr(request, name) for name in _SHARED_FIELDS if name in request.__struct_fields__}
    return ChatRequest(
        messages=messages,
        tools=list(tools.functions) or None,
        tool_choice=tools.choice(choice),
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        continue_final_message=(last.role == "assistant" and not last.tool_calls) or None,
        reasoning_effort=_effort(request),
        response_format=_response_format(request),
        **{**shared, **fields},
    )


def _effort(request: CountTokensRequest) -> Effort | None:
    if request.thinking and request.thinking.type == "disabled":
        return "none"
    return request.output_config.effort if request.output_config else None


def _response_format(request: CountTokensRequest) -> dict[str, Any] | None:
    form = (request.output_config.format if request.output_config else None) or request.output_format
    if form is None:
        return None
    match form:
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    raise InvalidRequest(
        'output_config.format must be {"type": "json_schema", "schema": {…}}', param="output_config.format"
    )


@contextmanager
def anthropic_names(tools: tuple[int, ...]) -> Iterator[None]:
    """Inside, errors name the fields of the caller's request, not the chat request's; `tools` is Translated's."""
    try:
        yield
    except MotetError as error:
        error.message = _renamed(error.message, tools)
        if error.param is not None:
            # The index of a chat message does not identify the caller's message.
            error.param = "messages" if error.param.startswith("messages") else _renamed(error.param, tools)
        raise


def _renamed(text: str, tools: tuple[int, ...]) -> str:
    def schema(match: re.Match[str]) -> str:
        # The message may quote the caller's text, in which the index may be any number.
        index = int(match[1])
        return f"tools[{tools[index]}].input_schema" if index < len(tools) else match[0]

    text = _PARAMETERS.sub(schema, text)
    return _CHAT_NAME.sub(lambda match: _ANTHROPIC_NAMES[match[0]], text)
