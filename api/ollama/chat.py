"""POST /api/chat: answers a conversation, line by line unless `stream` is false."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta
from quart import Blueprint, Response

from motet.api.generating.answer import Call, collect
from motet.api.generating.chat_generation import ChatGeneration, start_chat
from motet.api.generating.tools import complete_arguments
from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.http.stream_response import Frames
from motet.api.ollama.answers import line_frame, load, stream_lines
from motet.api.ollama.errors import OllamaError
from motet.api.ollama.objects import (
    OllamaAnswerMessage,
    OllamaCall,
    OllamaChatAnswer,
    OllamaFunction,
    final_counts,
    timestamp,
)
from motet.api.ollama.requests import Images, OllamaRequest, Options, effort, generate_fields, parsed, refuse_images
from motet.api.schema.chat_messages import MAX_MESSAGES, FunctionCall, Message, ToolCall
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.chat_tools import MAX_TOOLS, FunctionTool
from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed, check_chat_fields
from motet.api.services import Services


class CalledByModel(msgspec.Struct, frozen=True):
    """The function that an earlier message called."""

    name: str
    arguments: dict[str, Any] = {}
    index: Annotated[int | None, Meta(description="Accepted; has no effect.")] = None


class EarlierCall(msgspec.Struct, frozen=True):
    """A call in an earlier message."""

    function: CalledByModel
    id: str | None = None
    type: str | None = None


class OllamaMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: Annotated[str | None, Meta(description="Accepted; the model does not read it.")] = None
    images: Images = None
    tool_calls: list[EarlierCall] | None = None
    tool_name: Annotated[str | None, Meta(description="The function whose result a `tool` message is.")] = None
    tool_call_id: str | None = None


class OllamaChatRequest(OllamaRequest, frozen=True, kw_only=True):
    """Body of POST /api/chat. Without messages, the adapter is loaded and the answer is empty."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None


OPERATIONS = (
    Operation(
        "post",
        "/api/chat",
        "Answer a conversation, in the shape of Ollama's API",
        "ollama",
        OllamaChatAnswer,
        body=OllamaChatRequest,
        example={
            "model": "",
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "stream": False,
            "options": {"num_predict": 32},
        },
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
        error_response=OllamaError,
        json_lines=True,
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("ollama_chat", __name__)

    @blueprint.post("/api/chat")
    async def ollama_chat() -> Response:
        async with services.drain.interruptible():
            body = await read_body(_parse)
            fields = generate_fields(services, body)
            if not body.messages:
                return json_response(await _load(services, body, fields["model"]))
            request = ChatRequest(
                messages=_messages(body.messages),
                tools=list(body.tools or ()) or None,
                reasoning_effort=effort(body),
                **fields,
            )
            check_chat_fields(request)
            chat = await start_chat(services, request, current_caller())
            note_ignored("think" for _ in chat.ignored)  # the one hint that these requests have
            if (limit := (body.options or Options()).limit()) is not None:
                chat = chat.limited(limit)
            if body.stream is not False:
                return await stream_lines(write_stream(chat, body.model), services.drain)
            return json_response(await write_whole(chat, body.model))

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[OllamaChatRequest]:
    result = parsed(body, OllamaChatRequest)
    for index, message in enumerate(result.request.messages or ()):
        refuse_images(message.images, f"messages[{index}].images")
    return result


async def _load(services: Services, body: OllamaChatRequest, model: str) -> OllamaChatAnswer:
    reason = await load(services, body, model)
    return OllamaChatAnswer(
        model=body.model, created_at=timestamp(), done=True, done_reason=reason, message=OllamaAnswerMessage()
    )


def _messages(ollama_messages: list[OllamaMessage]) -> list[Message]:
    """The conversation as chat messages. Calls get ids; Ollama's results have none, and are matched in order."""
    messages, open_ids, count = [], list[str](), 0
    for message in ollama_messages:
        calls = []
        for call in message.tool_calls or ():
            id, count = call.id or f"call_{count}", count + 1
            arguments = msgspec.json.encode(call.function.arguments).decode()
            calls.append(ToolCall(id, FunctionCall(call.function.name, arguments)))
            open_ids.append(id)
        call_id = None
        if message.role == "tool":
            call_id = message.tool_call_id or (open_ids.pop(0) if open_ids else None)
        content = message.content or ""
        name = message.tool_name if message.role == "tool" else None
        messages.append(Message(message.role, content, None, name, calls or None, call_id))
    return messages


async def write_whole(chat: ChatGeneration, model: str) -> OllamaChatAnswer:
    """The whole answer. Raises MotetError."""
    [answer] = await collect(chat.deltas(), 1)
    counts = final_counts(chat.generation, answer.finish(), answer.tokens)
    message = OllamaAnswerMessage(content=answer.text, tool_calls=list(map(_answered, answer.calls)) or UNSET)
    return OllamaChatAnswer(model=model, created_at=timestamp(), message=message, **counts)


async def write_stream(chat: ChatGeneration, model: str) -> Frames:
    """The lines of the answer. A call is one line, sent when its arguments are complete."""

    def line(counts: Mapping[str, Any] | None = None, **message: Any) -> bytes:
        answer = OllamaAnswerMessage(**message)
        return line_frame(OllamaChatAnswer(model=model, created_at=timestamp(), message=answer, **(counts or {})))

    tokens, call = 0, None
    async with aclosing(chat.deltas()) as deltas:
        async for _, delta in deltas:
            tokens += len(delta.tokens)
            frames = b""
            for part in delta.parts:
                if call is not None and (isinstance(part, str) or part.name is not None):
                    frames, call = frames + line(tool_calls=[_answered(call)]), None
                if isinstance(part, str):
                    frames += line(content=part)
                    continue
                call = call or Call(part.id or "", part.name or "", part.kind)
                call.pieces.append(part.arguments)
            if delta.finish_reason is not None:
                if call is not None:
                    frames += line(tool_calls=[_answered(call)])
                frames += line(final_counts(chat.generation, delta.finish_reason, tokens))
            yield frames, delta.more


def _answered(call: Call) -> OllamaCall:
    return OllamaCall(call.id, OllamaFunction(call.name, complete_arguments(call.arguments)))
