"""POST /v1/chat/completions: OpenAI's JSON around a chat generation (`api/generating/chat_generation.py`)."""

from __future__ import annotations

from contextlib import aclosing

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.generating.answer import Answer, Call, collect
from motet.api.generating.chat_deltas import CallDelta, ChatDelta
from motet.api.generating.chat_generation import ChatGeneration, start_chat
from motet.api.generating.generation import Generation
from motet.api.generating.logprobs import chat_logprobs, packed
from motet.api.http.caller import Caller, current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.http.sse import DONE, event_frame
from motet.api.http.stream_response import Frames, joined, stream_response
from motet.api.routes.response_headers import answer_headers
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.openai_objects import (
    AnsweredCall,
    CalledCustomTool,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    CustomDelta,
    Delta,
    FunctionDelta,
    ToolCallDelta,
    Usage,
)
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import parse_chat
from motet.api.schema.unsupported_fields import CHAT
from motet.api.services import Services

OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        "generate",
        ChatCompletion,
        body=ChatRequest,
        event=ChatChunk,
        example={
            "model": "",
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "max_tokens": 32,
        },
        unsupported=CHAT,
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("chat", __name__)

    @blueprint.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_chat)
            chat = await start_chat(services, request, current_caller())
            note_ignored(chat.ignored)
            if request.stream:
                return await stream_response(joined(write_stream(chat)), services.drain)
            completion = await write_whole(chat)
            characters = sum(len(choice.message.content or "") for choice in completion.choices)
            headers = answer_headers(chat.generation, characters)
            return json_response(completion, headers=headers)

    return blueprint


async def answer_chat(services: Services, request: ChatRequest, caller: Caller) -> ChatCompletion:
    """The whole answer to `request`. Raises MotetError."""
    return await write_whole(await start_chat(services, request, caller))


async def write_whole(chat: ChatGeneration) -> ChatCompletion:
    """The whole answer. Raises MotetError."""
    generation = chat.generation
    logprobs = [ChatLogprobs([]) if generation.wants_logprobs else None for _ in generation.sequences]

    def write_logprobs(index: int, delta: ChatDelta) -> None:
        if (written := logprobs[index]) is not None:
            new = chat_logprobs(generation.tokenizer, delta.tokens, generation.report)
            written.content.extend(map(packed, new.content))

    answers = await collect(chat.deltas(), len(generation.sequences), write_logprobs)
    choices = [
        ChatChoice(
            index,
            _message(answer),
            logprobs[index],
            answer.finish(),
            answer.token_ids if generation.report.ids else UNSET,
        )
        for index, answer in enumerate(answers)
    ]
    return ChatCompletion(
        id=generation.id,
        created=generation.created,
        model=generation.model,
        choices=choices,
        usage=generation.usage(sum(answer.tokens for answer in answers)),
        system_fingerprint=generation.fingerprint,
        prompt_token_ids=generation.prompt_ids(0),
    )


def _message(answer: Answer) -> ChatMessage:
    if not answer.calls:
        return ChatMessage(content=answer.text)
    return ChatMessage(content=answer.text or None, tool_calls=[_answered(call) for call in answer.calls])


def _answered(call: Call) -> AnsweredCall:
    if call.kind == "custom":
        return AnsweredCall(id=call.id, type="custom", custom=CalledCustomTool(call.name, call.arguments))
    return AnsweredCall(id=call.id, function=CalledFunction(call.name, call.arguments))


async def write_stream(chat: ChatGeneration) -> Frames:
    """The stream: each choice's role, its text and calls, its finish; then usage, if requested; then [DONE]."""
    generation = chat.generation
    # OpenAI's SDK needs choices to appear in the order of their indexes. The roles are not sent before the first
    # delta: until then a failure still gets a status of its own.
    frames = b"".join(
        _chunk(generation, ChatChunkChoice(index, Delta(role="assistant", content="")), generation.prompt_ids(index))
        for index in range(len(generation.sequences))
    )
    count = 0
    async with aclosing(chat.deltas()) as deltas:
        async for index, delta in deltas:
            count += len(delta.tokens)
            tokens = generation.report.reported(delta.tokens) if generation.wants_logprobs else ()
            ids = generation.token_ids(delta.tokens) or UNSET
            if delta.text or tokens or ids:
                logprobs = chat_logprobs(generation.tokenizer, tokens, generation.report) if tokens else None
                choice = ChatChunkChoice(index, Delta(content=delta.text), logprobs, token_ids=ids)
                frames += _chunk(generation, choice)
            for call in delta.calls:
                frames += _chunk(generation, ChatChunkChoice(index, Delta(tool_calls=[_call_delta(call)])))
            if delta.finish_reason is not None:
                frames += _chunk(generation, ChatChunkChoice(index, Delta(), None, delta.finish_reason))
            yield frames, delta.more
            frames = b""
    if generation.include_usage:
        yield _chunk(generation, None, usage=generation.usage(count)), True
    yield DONE, False


def _chunk(
    generation: Generation,
    choice: ChatChunkChoice | None,
    prompt_ids: tuple[int, ...] | UnsetType = UNSET,
    usage: Usage | None = None,
) -> bytes:
    return event_frame(
        ChatChunk(
            id=generation.id,
            created=generation.created,
            model=generation.model,
            choices=(choice,) if choice is not None else (),
            system_fingerprint=generation.fingerprint,
            usage=usage if generation.include_usage else UNSET,
            prompt_token_ids=prompt_ids,
        )
    )


def _call_delta(call: CallDelta) -> ToolCallDelta:
    begins = call.id is not None and call.name is not None
    id, kind, name = (call.id or UNSET, call.kind, call.name or UNSET) if begins else (UNSET, UNSET, UNSET)
    if call.kind == "custom":
        return ToolCallDelta(index=call.index, id=id, type=kind, custom=CustomDelta(name, call.arguments))
    return ToolCallDelta(index=call.index, id=id, type=kind, function=FunctionDelta(name, call.arguments))
