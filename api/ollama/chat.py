"""POST /api/chat: answers a conversation, line by line unless `stream` is false."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta
from quart import Blueprint, Response

from motet.api.generating.chat import ChatRun
from motet.api.generating.tools import complete_arguments
from motet.api.http.body import read_body
from motet.api.http.caller import current_caller
from motet.api.http.sse import LINES, stream_response
from motet.api.ollama.answers import encoded_lines, json_response, load
from motet.api.ollama.errors import OllamaError, ollama_error_line
from motet.api.ollama.objects import (
    OllamaAnswerMessage,
    OllamaCall,
    OllamaChatAnswer,
    OllamaFunction,
    final_counts,
    timestamp,
)
from motet.api.ollama.requests import Images, OllamaRequest, Options, effort, generate_fields, parsed, refuse_images
from motet.api.schema.ignored_fields import note_ignored
from motet.api.schema.operations import ERRORS, TOKEN, Operation
from motet.api.schema.parsing import Parsed, check_chat
from motet.api.schema.requests import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatRequest,
    FunctionCall,
    FunctionTool,
    Message,
    ToolCall,
)
from motet.api.services import Services


class CalledByModel(msgspec.Struct, frozen=True):
    """The function that an earlier message called."""

    name: str
    arguments: dict[str, Any] = {}
    index: Annotated[int | None, Meta(description="Accepted; has no effect.")] = None


class EarlierCall(msgspec.Struct, frozen=True):
    """A call that an earlier message made."""

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
        errors=ERRORS,
        parameters=(TOKEN,),
        failure=OllamaError,
        lines=True,
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("ollama_chat", __name__)

    @blueprint.post("/api/chat")
    async def chat() -> Response:
        async with services.drain.interruptible():
            asked = await read_body(_parse)
            fields = generate_fields(services, asked)
            if not asked.messages:
                return json_response(await _loaded(services, asked, fields["model"]))
            request = ChatRequest(
                messages=_messages(asked.messages),
                tools=list(asked.tools or ()) or None,
                reasoning_effort=effort(asked),
                **fields,
            )
            check_chat(request)
            run = await ChatRun.start(services, request, current_caller())
            note_ignored("think" for _ in run.ignored)  # the one hint that these requests have
            if (limit := (asked.options or Options()).limit()) is not None:
                run = run.limited(limit)
            lines = _lines(services, run, asked.model)
            if asked.stream is not False:
                return await stream_response(encoded_lines(lines), services.drain, ollama_error_line, LINES)
            return json_response(await _whole(lines))

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[OllamaChatRequest]:
    asked = parsed(body, OllamaChatRequest)
    for index, message in enumerate(asked.request.messages or ()):
        refuse_images(message.images, f"messages[{index}].images")
    return asked


async def _loaded(services: Services, asked: OllamaChatRequest, model: str) -> OllamaChatAnswer:
    reason = await load(services, asked, model)
    return OllamaChatAnswer(
        model=asked.model, created_at=timestamp(), done=True, done_reason=reason, message=OllamaAnswerMessage()
    )


def _messages(given: list[OllamaMessage]) -> list[Message]:
    """The conversation as chat has it. Calls get ids, which Ollama's results do not need: they come in order."""
    messages, open_ids, count = [], list[str](), 0
    for message in given:
        calls = []
        for call in message.tool_calls or ():
            id, count = call.id or f"call_{count}", count + 1
            arguments = msgspec.json.encode(call.function.arguments).decode()
            calls.append(ToolCall(id, FunctionCall(call.function.name, arguments)))
            open_ids.append(id)
        answered = None
        if message.role == "tool":
            answered = message.tool_call_id or (open_ids.pop(0) if open_ids else None)
        content = message.content or ""
        name = message.tool_name if message.role == "tool" else None
        messages.append(Message(message.role, content, None, name, calls or None, answered))
    return messages


async def _lines(services: Services, run: ChatRun, model: str) -> AsyncGenerator[tuple[OllamaChatAnswer, bool], None]:
    """Each line of the answer, and whether the next one is there already. Calls come whole."""
    tokens, pieces, name, id = 0, list[str](), "", ""

    def line(**message: Any) -> OllamaChatAnswer:
        return OllamaChatAnswer(model=model, created_at=timestamp(), message=OllamaAnswerMessage(**message))

    def call() -> OllamaChatAnswer:
        made = OllamaCall(id, OllamaFunction(name, complete_arguments("".join(pieces))))
        pieces.clear()
        return line(tool_calls=[made])

    async with aclosing(run.deltas(services)) as deltas:
        async for _, delta in deltas:
            tokens += len(delta.tokens)
            for part in delta.parts:
                if isinstance(part, str) or part.name is not None:
                    if name:
                        yield call(), True
                        name = ""
                    if isinstance(part, str):
                        yield line(content=part), delta.more or delta.finish_reason is not None
                        continue
                    name, id = part.name or "", part.id or ""
                pieces.append(part.arguments)
            if delta.finish_reason is not None:
                if name:
                    yield call(), True
                counts = final_counts(run.generation, delta.finish_reason, tokens)
                yield msgspec.structs.replace(line(), **counts), False


async def _whole(lines: AsyncGenerator[tuple[OllamaChatAnswer, bool], None]) -> OllamaChatAnswer:
    texts, calls = list[str](), list[OllamaCall]()
    async with aclosing(lines):
        async for line, _ in lines:
            texts.append(line.message.content)
            calls += line.message.tool_calls or []
    message = OllamaAnswerMessage(content="".join(texts), tool_calls=calls or UNSET)
    return msgspec.structs.replace(line, message=message)
