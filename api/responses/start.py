"""From a response request to a run: the conversation so far, the chat request it comes to, and its mistakes' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from motet.api.caller import Caller
from motet.api.chat_run import ChatRun
from motet.api.parsing import Parsed, check_adapters, check_chat, convert, unknown_fields
from motet.api.responses.items import chat_messages, input_items
from motet.api.responses.objects import ResponseObject
from motet.api.responses.run import ResponseRun, new_id, new_response
from motet.api.responses.schemas import ResponseRequest
from motet.api.responses.store import ResponseStore
from motet.api.schemas import ChatRequest, FunctionDefinition, FunctionTool, Message
from motet.api.services import Services
from motet.api.unsupported import RESPONSES, refuse_unsupported
from motet.core.errors import ContextExceeded, InvalidRequest, MotetError

# The chat request's fields, as the caller knows them.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
MAX_DROPPED = 256


def parse_response(body: dict[str, Any]) -> Parsed[ResponseRequest]:
    """A response request, complete but for what only the model and the store know. Raises InvalidRequest."""
    refuse_unsupported(body, RESPONSES)
    _refuse_tools(body)
    request = convert(body, ResponseRequest)
    check_adapters(request)
    if request.background and not request.stores:
        raise InvalidRequest("background needs store", param="background")
    if request.top_logprobs and not request.wants_logprobs:
        raise InvalidRequest("top_logprobs needs include: message.output_text.logprobs", param="top_logprobs")
    return Parsed(request, unknown_fields(body, ResponseRequest, RESPONSES))


def _refuse_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    for index, tool in enumerate(tools) if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise InvalidRequest(
                "functions are the only tools here", param=f"tools[{index}].type", code="unsupported_value"
            )


async def start_response(services: Services, request: ResponseRequest, caller: Caller) -> ResponseRun:
    """Everything that can be refused before work starts has been, once this returns. Raises MotetError."""
    items = input_items(request.input)
    messages = await _messages(services, request, items, caller)
    response = new_response(request, new_id())
    with own_names():
        chat = await _fitting(services, request, messages, response, caller)
    return ResponseRun(chat, response, items, request.wants_logprobs, caller)


async def _messages(
    services: Services, request: ResponseRequest, items: list[dict[str, Any]], caller: Caller
) -> list[Message]:
    before: list[dict[str, Any]] = []
    if request.previous_response_id is not None:
        store = ResponseStore(services.database)
        before = await store.conversation(caller.owner, request.previous_response_id)
    messages = chat_messages([*before, *items])
    if request.instructions:
        messages.insert(0, Message("system", request.instructions))
    if not messages:
        raise InvalidRequest("there is no message in the input", param="input")
    return messages


async def _fitting(
    services: Services, request: ResponseRequest, messages: list[Message], response: ResponseObject, caller: Caller
) -> ChatRun:
    """The chat's run; with truncation `auto`, of the latest messages that fit."""
    kept, dropped = list(messages), 0
    while True:
        chat = chat_request(request, kept)
        check_chat(chat)
        try:
            return await ChatRun.start(services, chat, caller, response.id)
        except ContextExceeded:
            first = next((i for i, message in enumerate(kept[:-1]) if message.role != "system"), None)
            if request.truncation != "auto" or first is None or dropped == MAX_DROPPED:
                raise
            del kept[first]
            dropped += 1


def chat_request(request: ResponseRequest, messages: list[Message]) -> ChatRequest:
    """`request` as a chat request with these messages. Raises InvalidRequest."""
    tools = [
        FunctionTool("function", FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))
        for tool in request.tools or ()
    ]
    same = {name: getattr(request, name) for name in _SAME}
    return ChatRequest(
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        tools=tools or None,
        tool_choice=_tool_choice(request.tool_choice),
        response_format=_format(request),
        logprobs=request.wants_logprobs,
        top_logprobs=request.top_logprobs if request.wants_logprobs else None,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        **same,
    )


_SAME = tuple(
    name
    for name in ResponseRequest.__struct_fields__
    if name in ChatRequest.__struct_fields__
    and name not in ("tools", "tool_choice", "stream", "stream_options", "store", "metadata", "top_logprobs")
)


def _tool_choice(choice: Any) -> Any:
    """OpenAI writes it flat here, and nested in chat."""
    match choice:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools)}:
            nested = [_tool_choice(tool) for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": nested}}
    return choice


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    """`text.format` as chat's `response_format`."""
    form = request.text.format if request.text else None
    if form is None or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}


@contextmanager
def own_names() -> Iterator[None]:
    """Inside, errors name the fields of the response request, not the chat request's."""
    try:
        yield
    except MotetError as error:
        if error.param is not None:
            for chat, own in _NAMES.items():
                if error.param == chat or error.param.startswith((f"{chat}.", f"{chat}[")):
                    error.param = (own + error.param[len(chat) :]).replace("text.format.json_schema", "text.format")
                    break
        raise
