"""Converts a response request, with its stored conversation, to a chat request and starts its generation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from msgspec.structs import replace

from motet.api.generating.chat_generation import ChatGeneration
from motet.api.generating.chat_prompts import render_chat
from motet.api.generating.checked_chat import CheckedChat, check_chat
from motet.api.http.caller import Caller
from motet.api.responses.generation import ResponseGeneration, new_id, new_response
from motet.api.responses.input_items import chat_messages, input_items, unknown_in_items, with_unique_ids
from motet.api.responses.requests import AnyResponseRequest, CountedRequest, ResponseRequest
from motet.api.responses.store import ResponseStore
from motet.api.responses.tools import FlatTools, hosted_names, refuse_hosted_choice, without_hosted
from motet.api.responses.truncation import Truncation
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.ignored_fields_header import MAX_IGNORED_NAMES
from motet.api.schema.parsing import Parsed, check_adapters, check_chat_fields, convert, unknown_fields
from motet.api.schema.unsupported_fields import RESPONSES, refuse_unsupported
from motet.api.services import Services
from motet.core.errors import InvalidRequest, MotetError

T = TypeVar("T", ResponseRequest, CountedRequest)

# The chat request's fields -> the response request's, for error messages.
_RESPONSE_NAMES = {
    "max_tokens or n": "max_output_tokens",  # there is no `n`
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.allowed_tools": "tool_choice",
}
_CHAT_NAME = re.compile(rf"\b(?:{'|'.join(map(re.escape, _RESPONSE_NAMES))})\b")


def parse_response(body: dict[str, Any]) -> Parsed[ResponseRequest]:
    """Parse a response request, except what needs the model and the store. Raises InvalidRequest."""
    request = _parsed(body, ResponseRequest)
    if request.background and not request.stores:
        raise InvalidRequest("background needs store", param="background")
    return Parsed(request, _ignored(body, request))


def parse_counted(body: dict[str, Any]) -> Parsed[CountedRequest]:
    """Parse a request to count the input tokens. Raises InvalidRequest."""
    fields = {name: value for name, value in body.items() if value is not None}
    request = _parsed(fields, CountedRequest)
    return Parsed(request, _ignored(body, request))


def _ignored(body: dict[str, Any], request: AnyResponseRequest) -> tuple[str, ...]:
    unknown = unknown_fields(body, type(request), RESPONSES)
    hosted = islice(hosted_names(body), MAX_IGNORED_NAMES)
    return (*hosted, *unknown, *islice(unknown_in_items(request.input), MAX_IGNORED_NAMES))


def _parsed(body: dict[str, Any], kind: type[T]) -> T:
    refuse_unsupported(body, RESPONSES)
    refuse_hosted_choice(body)
    request = convert(without_hosted(body), kind)
    check_adapters(request)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options requires stream to be true", param="stream_options")
    if request.top_logprobs and not request.wants_logprobs:
        raise InvalidRequest("top_logprobs needs include: message.output_text.logprobs", param="top_logprobs")
    return request


async def start_response(services: Services, request: AnyResponseRequest, caller: Caller) -> ResponseGeneration:
    """Check the request and prepare its generation; no error of the request comes later. Raises MotetError."""
    store, id = ResponseStore(services.database), new_id()
    items = await _items(store, request, caller)
    tools = FlatTools.of(request)
    messages = await _messages(store, request, items, caller, tools)
    with response_field_names(tools):
        chat_fields = chat_request(request, messages, tools)
        check_chat_fields(chat_fields)
        checked = await check_chat(services, chat_fields, caller)
        chat = await (_start_truncated if request.truncation == "auto" else _start)(checked, id)
    return ResponseGeneration(chat, new_response(request, id, chat), items, request.wants_logprobs, caller, tools)


async def _items(store: ResponseStore, request: AnyResponseRequest, caller: Caller) -> list[dict[str, Any]]:
    """The request's own input, with references replaced by stored items. Raises InvalidRequest, NotFound."""
    items = input_items(request.input)
    field_of_id = {item["id"]: f"input[{i}].id" for i, item in enumerate(items) if item["type"] == "item_reference"}
    stored = await store.items(caller.owner, field_of_id) if field_of_id else {}
    return with_unique_ids(stored[item["id"]] if item["type"] == "item_reference" else item for item in items)


async def _messages(
    store: ResponseStore, request: AnyResponseRequest, items: list[dict[str, Any]], caller: Caller, tools: FlatTools
) -> list[Message]:
    earlier: list[dict[str, Any]] = []
    if request.previous_response_id is not None:
        earlier = await store.conversation(caller.owner, request.previous_response_id)
    messages = chat_messages([*earlier, *items], tools.name_of)
    if request.instructions:
        messages.insert(0, Message("system", request.instructions))
    if not messages:
        raise InvalidRequest("there is no message in the input", param="input")
    return messages


async def _start(checked: CheckedChat, id: str) -> ChatGeneration:
    request = checked.request
    prompt = await render_chat(checked.services, request, checked.template, checked.tools)
    return ChatGeneration.of(checked, prompt, id)


async def _start_truncated(checked: CheckedChat, id: str) -> ChatGeneration:
    """The generation of the latest messages that fit. Raises MotetError."""
    request, services = checked.request, checked.services

    async def start(messages: list[Message]) -> ChatGeneration:
        return await _start(dataclasses.replace(checked, request=replace(request, messages=messages)), id)

    def may_fit(text: str) -> bool:
        return request.truncate_prompt_tokens is not None or services.tokenizer.may_fit(text, checked.model.max_context)

    return await Truncation(request.messages, start, may_fit).run()


def chat_request(request: AnyResponseRequest, messages: list[Message], tools: FlatTools) -> ChatRequest:
    """`request` as a chat request with these messages. Raises InvalidRequest."""
    shared = {name: getattr(request, name) for name in _SHARED_FIELDS}
    return ChatRequest(
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        tools=tools.tools or None,
        tool_choice=tools.choice(request.tool_choice),
        response_format=_format(request),
        logprobs=request.wants_logprobs,
        top_logprobs=request.top_logprobs if request.wants_logprobs else None,
        verbosity=request.text.verbosity if request.text else None,
        **shared,
    )


_SHARED_FIELDS = tuple(
    name
    for name in CountedRequest.__struct_fields__
    if name in ChatRequest.__struct_fields__
    and name not in ("tools", "tool_choice", "stream", "stream_options", "store", "metadata", "top_logprobs")
)


def _format(request: AnyResponseRequest) -> dict[str, Any] | None:
    """`text.format` as chat's `response_format`."""
    form = request.text.format if request.text else None
    if form is None or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}


@contextmanager
def response_field_names(tools: FlatTools) -> Iterator[None]:
    """Within the block, errors name the fields of the response request instead of the chat request's."""
    try:
        yield
    except MotetError as error:
        error.message = _renamed(error.message)
        if error.param is not None:
            # A message's item is not known here; errors in items were raised before.
            error.param = "input" if error.param.startswith("messages") else _renamed(tools.field(error.param))
            error.param = "include" if error.param == "logprobs" else error.param
        raise


def _renamed(text: str) -> str:
    return _CHAT_NAME.sub(lambda found: _RESPONSE_NAMES[found[0]], text)
